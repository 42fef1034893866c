"""LLaDA-8B and LLaDA-MoE-7B in plain PyTorch: masked-diffusion decoding, measured step by step.

`python -m hw_validation.llada --help` explains the command. Nothing here needs the simulator: a machine with
torch and this folder is enough.
"""
