"""Runs lm-evaluation-harness, unmodified and without a network, on the tasks beside this file."""

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODEL = "demo/mixtral"  # from ROOT; its tokenizer too
TASKS = ["lorry_choice", "lorry_answer", "lorry_text"]


def evaluate(model, arguments, folder, *more):
    """The harness's own `model` ("hf", "local-completions") with `arguments`. Returns by task: the
    metrics, and of each document what the model said: text, or log-likelihoods and whether greedy."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "HF_HOME": str(folder / "hf"),
                   "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NO_PROXY": "127.0.0.1",
                   "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1"}
    joined = ",".join(f"{name}={value}" for name, value in arguments.items())
    run = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", joined,
         "--tasks", ",".join(TASKS), "--include_path", str(HERE / "tasks"), "--output_path",
         str(folder / "out"), "--log_samples", *more],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=300)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-6000:]
    [results] = (folder / "out").glob("*/results_*.json")
    metrics = json.loads(results.read_text())["results"]
    return {task: {"metrics": _metrics(metrics[task]), "answers": _answers(results.parent, task)}
            for task in TASKS}, run.stdout + run.stderr


def _metrics(row):
    return {name: value for name, value in row.items() if isinstance(value, float)}


def _answers(folder, task):
    [file] = folder.glob(f"samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    samples.sort(key=lambda sample: sample["doc_id"])
    return [[_value(response) for [response] in sample["resps"]] for sample in samples]


def _value(response):
    """The log of samples has numbers as texts."""
    if isinstance(response, str):
        try:
            return float(response)
        except ValueError:
            return response
    return [float(response[0]), str(response[1]) == "True"]
