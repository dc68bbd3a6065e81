"""The head of a model card that model hubs read: YAML with the licence, the task and the accuracies.

The keys are those of https://github.com/huggingface/hub-docs/blob/main/modelcard.md. With it a bundle can be
pushed to the Hugging Face Hub as it is: the card is README.md, which the hub shows.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from export.bundle.contents import Bundle
from export.formats import format_of

TASK = "image-classification"
# What the hub calls licences, by what sources call them; the rest has a name and a link of its own.
LICENCES = {
    "apache 2.0": "apache-2.0",
    "apache-2.0": "apache-2.0",
    "bsd 3-clause": "bsd-3-clause",
    "bsd-3-clause": "bsd-3-clause",
    "cc by 4.0": "cc-by-4.0",
    "cc by-nc 4.0": "cc-by-nc-4.0",
    "cc by-nc-sa 4.0": "cc-by-nc-sa-4.0",
    "mit": "mit",
}


def card_head(bundle: Bundle) -> str:
    """The YAML head of the card, between its two lines of dashes."""
    formats = [format_of(Path(file.file)).name for file in bundle.files]
    # "onnx" is a library to the hub; other formats have none there.
    library = "onnx" if "onnx" in formats else formats[0]
    tags = [TASK, "ofa-toolkit", *formats, *(file.precision for file in bundle.files)]
    facts = _licence(bundle) | {
        "library_name": library,
        "pipeline_tag": TASK,
        "tags": list(dict.fromkeys(tags)),
    }
    results = _results(bundle)
    # The hub refuses a model-index without results.
    if results:
        facts |= {"metrics": ["accuracy"], "model-index": [{"name": bundle.subnet, "results": results}]}
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---\n"


def _licence(bundle: Bundle) -> dict[str, Any]:
    """The licence of the weights that the training started from, in the hub's words."""
    origin = bundle.files[0].weights
    # Nobody but the user knows under what licence weights of his own are.
    if origin is None or origin["licence"] == "unknown":
        return {"license": "unknown"}
    stated = str(origin["licence"])
    # A remark may follow the name: "Apache 2.0, if these are timm's default weights of that name".
    name = stated.split(",")[0].strip().lower()
    if name in LICENCES:
        return {"license": LICENCES[name]}
    own = {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name).strip("-") or "other"}
    # It comes from a file of anybody, and some viewers show the head as HTML.
    if origin["url"] and re.fullmatch(r"https?://[^\s<>\"'`]+", origin["url"]):
        own["license_link"] = origin["url"]
    return own


def _results(bundle: Bundle) -> list[dict[str, Any]]:
    """The accuracies of the files, each with the data and the split that it was measured on."""
    found = []
    data = bundle.provenance.data["name"]
    for file in bundle.files:
        if file.accuracy is None:
            continue
        dataset = {"name": data, "type": data, "split": file.accuracy.split}
        metric = {
            "type": "accuracy",
            "name": f"top-1 of {file.file} on {file.accuracy.images} images",
            "value": file.accuracy.file,
        }
        task = {"type": TASK, "name": "image classification"}
        found.append({"task": task, "dataset": dataset, "metrics": [metric]})
    return found
