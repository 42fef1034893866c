"""Bad input ends with exit code 2 and one line that names place, value and the nearest right answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesim.specs.loading import config_root
from tests.cli.conftest import Answer, Run

BASE = "--model mixtral-8x7b --hardware h200 --gpus 8"


def check_one_line(answer: Answer, *parts: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that holds all parts."""
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("moesim: ")
    for part in parts:
        assert part in answer.err


CASES = [
    ("simulate --model mixtral-8x7 --hardware h200", ["unknown model 'mixtral-8x7'", "did you mean 'mixtral-8x7b'"]),
    ("simulate --model mixtral-8x7b --hardware h20", ["unknown hardware 'h20'", "'h200'"]),
    ("simulate --hardware h200", ["--model is missing", "mixtral-8x7b"]),
    ("simulate --model dbrx", ["--hardware is missing", "mi300x"]),
    ("simulate --model qwen3.5-397b-a17b --hardware h200", ["linear attention"]),
    ("simulate --model mixtral-8x7b --hardware h200 --gpus 0", ["gpus", "0"]),
    ("recommend --model mixtral-8x7b --hardware h200 --gpus 0", ["gpus", "0"]),
    ("simulate --model mixtral-8x7b --hardware h200 --gpus -3", ["gpus", "-3"]),
    ("simulate --model mixtral-8x7b --hardware h200 --gpus three", ["--gpus", "'three'"]),
    ("simulate --model mixtral-8x7b --hardware h200 --gpus 5", ["tensor_parallel_size", "5", "32 attention heads"]),
    ("simulate --model mixtral-8x7b --hardware h200 --gpus 6 --tp 2 --dp 3 --ep 6", ["8 experts", "sizes that do"]),
    (f"simulate {BASE} --tp 3", ["tp: 3 does not divide"]),
    (f"simulate {BASE} --tp 4 --dp 4", ["16 ranks must equal the 8"]),
    ("simulate --model mixtral-8x7b --hardware h200 --gpus 12", ["12 does not divide the 32 attention heads", "16"]),
    ("simulate --model dbrx --hardware h200 --gpus 20 --tp 4 --nodes 3", ["gpus: 20", "3 nodes"]),
    ("simulate --model dbrx --hardware h200 --gpus 16 --nodes 1", ["nodes", "at least 2 nodes"]),
    ("simulate --model dbrx --hardware h200 --gpus 16 --nodes 65", ["nodes: 65", "1 to 64"]),
    ("simulate --model mixtral-8x7b --hardware a100-40gb", ["does not fit", "smallest", "4 x a100-40gb"]),
    ("recommend --model deepseek-v3 --hardware h100 --gpus 4", ["does not fit", "16 x h100"]),
    (f"simulate {BASE} --max-num-seqs 0", ["max_num_seqs", "0"]),
    (f"simulate {BASE} --max-num-batched-tokens 8 --max-num-seqs 16", ["max_num_batched_tokens", "8", "16"]),
    (f"simulate {BASE} --gpu-memory-utilization 1.5", ["gpu_memory_utilization", "1.5"]),
    (f"simulate {BASE} --gpu-memory-utilization nan", ["gpu_memory_utilization", "nan"]),
    (f"simulate {BASE} --quantization fp7", ["quantization", "'fp7'", "fp8"]),
    (f"simulate {BASE} --kv-cache-dtype fp9", ["kv_cache_dtype", "'fp9'"]),
    (f"simulate {BASE} --frontend serve", ["frontend", "'serve'"]),
    (f"simulate {BASE} --routing zipff", ["routing", "'zipff'", "zipf"]),
    (f"simulate {BASE} --routing zipf:9", ["routing", "9", "0 to 4"]),
    (f"simulate {BASE} --routing zipf:x", ["routing", "'x'"]),
    (f"simulate {BASE} --routing counts.csv", ["counts.csv", "does not exist"]),
    (f"simulate {BASE} --request-rate 0", ["request_rate", "0"]),
    (f"simulate {BASE} --request-rate nan", ["request_rate", "nan"]),
    (f"simulate {BASE} --concurrency 0", ["concurrency", "0"]),
    (f"simulate {BASE} --concurrency 4 --request-rate 2", ["concurrency and request_rate"]),
    (f"simulate {BASE} --num-prompts 0", ["num_prompts", "0"]),
    (f"simulate {BASE} --input-len 0", ["input_tokens", "0"]),
    (f"simulate {BASE} --output-len -1", ["output_tokens", "-1"]),
    (f"simulate {BASE} --range-ratio 2", ["range_ratio", "2"]),
    (f"simulate {BASE} --input-len 40000", ["40128 tokens exceed the 32768 positions"]),
    (f"simulate {BASE} --max-model-len 100", ["max_model_len: 100", "640"]),
    (f"simulate {BASE} --trace nowhere.csv", ["nowhere.csv", "does not exist"]),
    (f"simulate {BASE} --parameters h2000", ["parameters", "'h2000'"]),
    (f"simulate {BASE} --steps 8", ["steps", "no masked-diffusion model"]),
    ("simulate --model llada-8b --hardware h200 --generation-len 100 --block-len 32", ["block_len: 32", "100"]),
    ("simulate --model llada-8b --hardware h200 --cache triple", ["cache", "'triple'", "dual"]),
    ("simulate --model llada-8b --hardware h200 --expert-execution pool", ["expert_execution", "'pool'", "grouped"]),
    ("simulate --model llada-8b --hardware h200 --cfg-scale -1", ["cfg_scale", "-1"]),
    ("estimate --model llada-8b --hardware h200", ["diffusion", "moesim simulate"]),
    (f"estimate {BASE} --batch 0", ["batch", "0"]),
    (f"recommend {BASE} --objective speed", ["objective", "'speed'", "throughput"]),
    (f"recommend {BASE} --tpot-slo 0", ["tpot_slo", "0"]),
    (f"recommend {BASE} --top 0", ["top", "0"]),
    ("experiment single_gp", ["experiment", "'single_gp'", "single_gpu"]),
    ("models mixtral-9x7b", ["unknown model 'mixtral-9x7b'", "mixtral-8x7b"]),
    ("hardware h3000", ["unknown hardware 'h3000'"]),
    ("simulat --model x", ["simulat", "simulate"]),
    (f"simulate {BASE} --concurency 4", ["--concurency", "--concurrency"]),
    (f"simulate {BASE} --json --csv -", ["--csv -", "--json"]),
    (f"simulate {BASE} --csv nowhere/rows.csv", ["nowhere/rows.csv", "cannot be written"]),
]


@pytest.mark.parametrize(("words", "parts"), CASES, ids=[words for words, _ in CASES])
def test_bad_words_are_refused_in_one_line(run: Run, words: str, parts: list[str]):
    check_one_line(run(words), *parts)


def edited_model(folder: Path, old: str, new: str) -> str:
    """A copy of the shipped Mixtral file with one edit."""
    text = (config_root() / "models" / "mixtral-8x7b.yaml").read_text(encoding="utf-8")
    assert old in text
    path = folder / "edited.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("hidden_size: 4096", "hiden_size: 4096", ["'hiden_size'", "did you mean 'hidden_size'"]),
        ("hidden_size: 4096", "hidden_size: 4e3", ["hidden_size", "4e3", "text"]),
        ("top_k: 2", "top_k: 9", ["moe.top_k is 9", "num_experts = 8"]),
        ("num_layers: 32", "num_layers: -1", ["num_layers"]),
        ("num_layers: 32", "num_layers: [", ["not valid YAML", "line"]),
    ],
)
def test_bad_model_files_name_file_field_and_value(run: Run, tmp_path: Path, old: str, new: str, parts: list[str]):
    path = edited_model(tmp_path, old, new)
    check_one_line(run("simulate", "--model", path, "--hardware", "h200"), path, *parts)


def test_a_number_that_yaml_reads_as_text_is_shown_right(run: Run, tmp_path: Path):
    text = (config_root() / "hardware" / "h200.yaml").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("hbm_bandwidth_bytes_per_s"))
    path = tmp_path / "card.yaml"
    path.write_text(text.replace(line, "hbm_bandwidth_bytes_per_s: 1e9"), encoding="utf-8")
    answer = run("simulate", "--model", "mixtral-8x7b", "--hardware", str(path))
    check_one_line(answer, str(path), "hbm_bandwidth_bytes_per_s", "1e9 as text", "1.000000e+09")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["holds no requests"]),
        ("arrival_s,input_tokens,output_tokens\n", ["holds no requests"]),
        ("arrival_s,input_tokens,output_tokens\n0,10,5\n1,nan,5\n", ["line 3", "input_tokens", "nan"]),
        ("arrival_s,input_tokens,output_tokens\n0,10,inf\n", ["line 2", "output_tokens", "inf"]),
        ("arrival_s,input_tokens,output_tokens\n0,ten,5\n", ["line 2", "input_tokens", "'ten'"]),
        ("arrival_s,input_tokens,output_tokens\n-1,10,5\n", ["line 2", "arrival_s", "-1"]),
        ("arrival_s,input_tokens,output_tokens\n0,0,5\n", ["line 2", "input_tokens is 0"]),
        ("arrival,input_tokens,output_tokens\n0,10,5\n", ["arrival_s"]),
    ],
)
def test_bad_traces_name_line_column_and_value(run: Run, tmp_path: Path, text: str, parts: list[str]):
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    answer = run("simulate", *BASE.split(), "--trace", str(path))
    check_one_line(answer, str(path), *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2,nan,4,5,6,7,8\n", ["row 1 column 3", "nan"]),
        ("1,2,3\n", ["3 experts", "mixtral-8x7b has 8"]),
        ("0,0,0,0,0,0,0,0\n", ["zero tokens"]),
        ("", ["no table"]),
    ],
)
def test_bad_counts_name_row_column_and_value(run: Run, tmp_path: Path, text: str, parts: list[str]):
    path = tmp_path / "counts.csv"
    path.write_text(text, encoding="utf-8")
    check_one_line(run("simulate", *BASE.split(), "--routing", str(path)), *parts)


def test_nan_in_a_file_of_measured_runs(run: Run, tmp_path: Path):
    path = tmp_path / "points.csv"
    header = "id,model_path,system,backend,precision,isl,osl,moe_quant_mode,tp_size,attention_dp_size,moe_ep_size"
    header += ",concurrency,silicon_ttft_ms,silicon_tpot_ms"
    path.write_text(f"{header}\na,deepseek-ai/DeepSeek-R1,h200_sxm,sglang,fp8,128,16,fp8,8,1,1,4,100,nan\n")
    check_one_line(run("validate", str(path)), str(path), "line 2", "silicon_tpot_ms", "nan")


def test_an_experiment_with_a_misspelt_word(run: Run, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndescription: d\nbase: {model: dbrx, hardware: h200, concurency: 4}\n")
    check_one_line(run("experiment", str(path)), str(path), "'concurency'", "'concurrency'")


def test_a_folder_is_no_trace(run: Run, tmp_path: Path):
    check_one_line(run("simulate", *BASE.split(), "--trace", str(tmp_path)), str(tmp_path))
