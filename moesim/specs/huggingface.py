UNSUPPORTED={}
def model_from_huggingface(config, where):
    raise RuntimeError
