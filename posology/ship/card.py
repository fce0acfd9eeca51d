"""The model card that lies in every export as README.md."""

from __future__ import annotations

from typing import Any

_READ = {
    "sequence-classification": """\
import json, sys
import numpy as np, onnxruntime
from tokenizers import Tokenizer

folder, text = sys.argv[1], sys.argv[2]
record = json.load(open(f"{folder}/posology.json", encoding="utf-8"))
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
frame = record["reading"]["frame"]
room = record["reading"]["max_length"] - len(frame["before"]) - len(frame["after"])
pieces = tokenizer.encode(text, add_special_tokens=False).ids[:room]
ids = np.array([[*frame["before"], *pieces, *frame["after"]]], np.int64)
session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
scores = np.exp(logits / record["temperature"])
for label, score in zip(record["labels"], scores / scores.sum()):
    print(f"{label}\\t{score:.4f}")""",
    "token-classification": """\
import json, re, sys
import numpy as np, onnxruntime
from tokenizers import Tokenizer

folder, text = sys.argv[1], sys.argv[2]
record = json.load(open(f"{folder}/posology.json", encoding="utf-8"))
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
frame, tags = record["reading"]["frame"], ["O", *(f"{letter}-{label}" for label in record["labels"] for letter in "BI")]
words, ids, firsts = [], list(frame["before"]), []
for match in re.finditer(r"[^\\W\\d_]+|\\d+|\\S", text):  # letters, digits, any other sign
    blank = " " if text[: match.start()][-1:].isspace() else ""
    pieces = tokenizer.encode([blank + match.group()], is_pretokenized=True, add_special_tokens=False).ids
    if pieces:
        words.append(match)
        firsts.append(len(ids))  # the first piece of a word stands for it
        ids += pieces
ids = np.array([[*ids, *frame["after"]]], np.int64)
session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
for match, tag in zip(words, logits[firsts].argmax(axis=1)):
    if tag:
        print(match.start(), match.end(), tags[tag], sep="\\t")""",
}

_ONNX = """\
`model.onnx` (opset {opset}, any batch and length), `tokenizer.json`, and `posology.json`, which says how texts are read. It
needs `pip install onnxruntime tokenizers numpy`, and nothing else.

```
python posology_runtime.py FOLDER < texts.jsonl > answers.jsonl
```

reads a JSON object with `text` on each line ({pairs}and `id` if you like). It reads long texts in windows, batches texts of
like length, and gives {answers} as `posology predict` does. In Python: `from posology_runtime import
Runtime; Runtime(FOLDER).predict(texts)`.

"""

_BARE = """\
Without it, for one text that fits into a window of {max_length} pieces (`python example.py FOLDER TEXT`):

```python
{code}
```

"""

_SAFETENSORS = """\
An ordinary folder of transformers:

```python
from transformers import AutoModelFor{kind}, AutoTokenizer

model, tokenizer = AutoModelFor{kind}.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
```

It was trained on windows of {max_length} pieces, special tokens included; longer texts are yours to cut.{words}

"""
_WORDS = " A word's answer is that for its first piece."


def export_card(content: dict[str, Any]) -> str:
    """Markdown that says what an export is, how it runs and what was measured. Holds no note text.

    Args:
        content: of `posology.json`.
    """
    made, tagger = content["artifact"], content["kind"] == "token-classification"
    lines = [
        f"# {made['task']['name']}: {made['method']} on {made['backbone']['name']}, {content['format']} {content['precision']}",
        "",
        f"Exported by Posology {content['versions']['posology']}. {content['kind'].replace('-', ' ').capitalize()}; labels: "
        f"{', '.join(content['labels'])}.",
        "",
        "## Use",
        "",
    ]
    max_length = content["reading"]["max_length"]
    if content["format"] == "onnx":
        answers = "the same spans" if tagger else "the same labels"
        pairs = "`text_pair`, " if content["text_pair"] else ""
        lines.append(_ONNX.format(opset=content["opset"], answers=answers, pairs=pairs))
        if not content["text_pair"]:
            lines.append(_BARE.format(max_length=max_length, code=_READ[content["kind"]]))
    else:
        kind = "TokenClassification" if tagger else "SequenceClassification"
        lines.append(_SAFETENSORS.format(kind=kind, max_length=max_length, words=_WORDS if tagger else ""))
    lines += [
        "## Measured",
        "",
        f"- In float32 its logits differ from the artifact's by at most {content['largest_logit_difference']:.1e}, on "
        "generated texts.",
        *_gate(content),
        *_int8(content),
        "",
        "## Limits",
        "",
        "- As good as the artifact it was made from, no better: see the card there for scores and intervals.",
        "- Not a medical device; not for decisions about a patient without a person who can answer for them.",
    ]
    return "\n".join(lines) + "\n"


def _gate(content: dict[str, Any]) -> list[str]:
    gate = content.get("gate")
    if gate is None:
        return ["- Its answers were not measured on documents."]
    what = "documents have another class"
    if content["kind"] == "token-classification":
        what = "words in entities have another tag"
    chosen = " Validation also chose what stays in float32, so that the true loss may be a little more."
    return [
        f"- On the {gate['documents']:,} validation documents of `{gate['data']['name']}`: {gate['metric']} "
        f"{gate['before']:.4f} in the artifact, {gate['after']:.4f} here ({gate['loss']:+.2f} points of loss, at most "
        f"{gate['max_loss']:g} allowed); {gate['changed']:.1f} % of {gate['labels']:,} {what} (at most "
        f"{gate['max_changed']:g} % allowed)." + chosen * bool(content.get("kept_in_fp32"))
    ]


def _int8(content: dict[str, Any]) -> list[str]:
    if content["precision"] != "int8":
        return []
    kept = content["kept_in_fp32"]
    left = f" but for {len(kept)} that stay in float32 ({', '.join(kept)})" if kept else ""
    vnni = (
        "It was measured on a processor that sums 8-bit products without overflow (VNNI, or Arm); on x86 without VNNI "
        "answers may be others: export it there."
        if content["vnni"]
        else "Weights have 7 bits, since the processor it was made on has no VNNI."
    )
    return [
        f"- Matrix products of the backbone are in 8 bits{left}; heads and embeddings are in float32. {vnni}",
        "- The range of activations is that of a whole batch, so that scores depend a little on which texts are read together.",
    ]
