"""golden.json: what the harness says about the demo model run by transformers (and PEFT) in fp32, the
`hf` model of the harness. Not part of the tests:

    python3 -m venv venv && venv/bin/pip install lm-eval==0.4.13 torch transformers==4.57.6 peft==0.21.2
    venv/bin/python tests/ecosystem/make_golden.py
"""

import json
import pathlib
import tempfile

from harness import HERE, MODEL, evaluate

ADAPTERS = [None, "summary", "pirate"]


def main():
    golden = {}
    for adapter in ADAPTERS:
        arguments = {"pretrained": MODEL, "dtype": "float32", "max_length": 1024}
        if adapter:
            arguments["peft"] = f"{MODEL}/adapters/{adapter}"
        with tempfile.TemporaryDirectory() as folder:
            golden[adapter or "demo"], _ = evaluate("hf", arguments, pathlib.Path(folder), "--device", "cpu")
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


main()
