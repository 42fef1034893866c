#!/usr/bin/env bash
# Measures one GPU with vLLM on random weights, in four parts that each end by themselves:
#   one_gpu.sh PART OUT_DIR SECONDS       PART: 0 (150 s), 1 (430 s), 2 (510 s), 3 (420 s)
# 0: machine, microbenchmarks, two layers of OLMoE (try this one first). 1: OLMoE and Qwen1.5-MoE with captured
# graphs. 2: Mixtral with graphs, the others eager. 3: layers of Qwen2-57B, DBRX and DeepSeek-V3, Mixtral eager.
# Run from the root of the source tree with vLLM importable. Leaves OUT_DIR/*.jsonl.gz and log.txt.gz.
set -u
part=${1:?usage: one_gpu.sh PART OUT_DIR SECONDS}; out=${2:?OUT_DIR}; end=$(( $(date +%s) + ${3:?SECONDS} ))
mkdir -p "$out"
loops=decode,prefill,mixed,closed,decode-long,closed-long,open,skew,greedy,kernels
steps=decode,prefill,mixed,decode-long,kernels,skew

left() { echo $(( end - $(date +%s) - 10 )); }

sweep() {  # FILE SECONDS ARGUMENT...: at most SECONDS of what is left
  local file=$1 seconds=$2; shift 2
  (( seconds <= $(left) )) || seconds=$(left)
  if (( seconds < 50 )); then echo "$file: no time left" | tee -a "$out/log.txt"; return 3; fi
  timeout -k 5 $(( seconds + 15 )) python3 -m hw_validation.vllm_sweep --out "$out/$file.jsonl" \
    --budget-s "$seconds" "$@" >> "$out/log.txt" 2>&1
  local code=$?; echo "$file: exit $code, $(left) s left" | tee -a "$out/log.txt"; return $code
}

case $part in
  0)
    all=olmoe-1b-7b,qwen1.5-moe-a2.7b,dbrx,qwen2-57b-a14b,mixtral-8x7b,deepseek-v3
    timeout -k 5 110 python3 -m hw_validation.micro --models $all --out "$out/micro.jsonl" --budget-s 75 >> "$out/log.txt" 2>&1
    echo "micro: exit $?, $(left) s left" | tee -a "$out/log.txt"
    sweep olmoe-2layers 999 --model olmoe-1b-7b --num-layers 2 --contexts 256 --sections decode,prefill,kernels ;;
  1)
    sweep olmoe 195 --model olmoe-1b-7b --sections $loops
    sweep qwen1.5-moe 999 --model qwen1.5-moe-a2.7b --sections $loops ;;
  2)
    sweep mixtral 345 --model mixtral-8x7b --contexts 256,1024 \
      --sections decode,prefill,mixed,closed,decode-long,kernels,closed-long,skew,open
    sweep olmoe-eager 70 --model olmoe-1b-7b --enforce-eager --contexts 256 --sections decode,prefill,kernels,mixed
    sweep qwen1.5-moe-eager 999 --model qwen1.5-moe-a2.7b --enforce-eager --contexts 256 \
      --sections decode,prefill,kernels,mixed ;;
  3)
    sweep qwen2-57b 110 --model qwen2-57b-a14b --num-layers 14 --contexts 256,1024 --sections $steps
    sweep dbrx 95 --model dbrx --num-layers 8 --contexts 256,1024 --sections $steps
    sweep deepseek-v3 130 --model deepseek-v3 --num-layers 7 --contexts 256,1024 --sections $steps
    (( $? == 0 || $? == 3 )) || sweep deepseek-v3-bf16 110 --model deepseek-v3 --num-layers 6 --bf16 \
      --attention-backend TRITON_MLA --contexts 256,1024 --sections $steps
    sweep mixtral-eager 999 --model mixtral-8x7b --enforce-eager --contexts 256 --sections decode,prefill,kernels ;;
  *) echo "PART is $part, must be 0, 1, 2 or 3" >&2; exit 2 ;;
esac
grep -E "ready after|records after|: failed|^error|Error" "$out/log.txt" | tail -n 40
gzip -9f "$out"/*.jsonl "$out/log.txt"
