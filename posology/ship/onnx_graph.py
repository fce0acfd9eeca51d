"""The network of an artifact as one ONNX file: adapter merged, virtual tokens and pooling inside.

input_ids, attention_mask (, token_type_ids)  (batch, length), int64
    └─ [prompt] ─ backbone [prefix] ─ [mean] ─ head ─ logits  (batch, classes) or (batch, length, tags), float32
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from posology.engine import virtual
from posology.engine.adapted import Adapted
from posology.engine.predictor import put_in
from posology.errors import UserError

OPSET = 22
"""Of ONNX 1.17. From 23 on PyTorch 2.13 writes rotary embeddings (ModernBERT, Llama) as one node whose tables have a batch
of 1, which onnxruntime 1.32 refuses for larger batches; nothing else of the newer ones would be used."""

MOST_BYTES = 1_900_000_000
"""Of weights in one file: the format of ONNX files ends at 2 GiB."""


def merged(adapted: Adapted) -> PreTrainedModel:
    """A plain transformers model in float32 with the adapter inside its weights; prefix and prompt are left out.

    Args:
        adapted: is taken apart, and cannot be used any more.
    """
    put_in(adapted.base)
    config = copy.deepcopy(adapted.base.config)
    config.dtype = torch.float32
    model: PreTrainedModel = type(adapted.base)(config)
    model.load_state_dict({name: weight.float().cpu() for name, weight in adapted.base.state_dict().items()})
    model.set_attn_implementation("eager")  # fewer nodes than the fused one gives, and as fast in onnxruntime
    return model.eval().requires_grad_(False)


class Graph(nn.Module):
    """What is exported: the padded forward pass of `Adapted.logits`, over a plain transformers model.

    Args:
        adapted: is taken apart, and cannot be used any more.
        text_pair: whether it has `token_type_ids` for an input.

    Attributes:
        base: the transformers model.
        inputs: names of the inputs, in their order.
        vectors: of a prefix or prompt; empty for other methods.
    """

    vectors: torch.Tensor

    def __init__(self, adapted: Adapted, text_pair: bool):
        super().__init__()
        self._method, self._kind, self._pooling = adapted.method, adapted.kind, adapted.pooling
        self._architecture = adapted.architecture
        weights = adapted.virtual_weights() if adapted.method in virtual.VIRTUAL else torch.empty(0, 0)
        self.register_buffer("vectors", weights.detach().float().cpu().clone())
        self.base = merged(adapted)
        if self._method == "prefix":
            self.base.set_attn_implementation(virtual.PREFIX_ATTENTION)
        self._backbone: Any = getattr(self.base, self.base.base_model_prefix)
        typed = text_pair and "token_type_ids" in inspect.signature(self._backbone.forward).parameters
        self.inputs = ("input_ids", "attention_mask", *(("token_type_ids",) if typed else ()))
        self._mask: list[torch.Tensor] = []
        if self._pooling == "mean" and not hasattr(self.base.config, "classifier_pooling"):
            self._backbone.get_submodule(self._architecture.body).register_forward_hook(self._put_mean)

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        """Logits of a batch padded on the right; see the module's drawing."""
        inputs = dict(zip(self.inputs, given, strict=True))
        arguments: dict[str, Any] = inputs
        self._mask[:] = [inputs["attention_mask"]]
        extra = 0
        if self._method == "prefix":
            arguments = virtual.forward_with_prefix(self.base, self._architecture, self.vectors, inputs)
        elif self._method in virtual.VIRTUAL:
            arguments, extra = virtual.forward_with_prompt(self.base, self.vectors, inputs), len(self.vectors)
        if self._pooling == "last" and self._kind == "sequence-classification":
            last = arguments["attention_mask"].sum(dim=1) - 1
            hidden = self._backbone(**arguments).last_hidden_state
            logits: torch.Tensor = self.base.get_submodule("score")(hidden[torch.arange(len(last)), last])
            return logits
        logits = self.base(**arguments).logits
        return logits[:, extra:] if self._kind == "token-classification" else logits

    def _put_mean(self, _module: nn.Module, _arguments: Any, output: Any) -> Any:
        """Puts the mean over the real tokens where the head reads, as `Adapted.read_mean` does."""
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        mask = self._mask[0].to(hidden.dtype)[:, :, None]
        real = hidden[:, hidden.shape[1] - mask.shape[1] :]  # virtual tokens stand before the real ones
        mean = (real * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        pooled = torch.cat((mean, hidden[:, 1:]), dim=1)
        if isinstance(output, torch.Tensor):
            return pooled
        output.last_hidden_state = pooled
        return output


def write(graph: Graph, path: Path, facts: dict[str, str]) -> dict[str, list[str]]:
    """Writes the network as ONNX, for batches and texts of any size.

    Args:
        graph: the network.
        path: of the file.
        facts: go into the file's metadata.

    Returns:
        For each linear map of the network, by its name in the transformers model, the nodes that multiply with its weight.

    Raises:
        UserError: the network is too large for one file, or cannot be written as ONNX.
    """
    import onnx

    size = 4 * sum(weight.numel() for weight in graph.parameters())
    if size > MOST_BYTES:
        raise UserError(
            f"its weights take {size / 1e9:.1f} GB, and an ONNX file holds less than 2",
            "Export it with --format safetensors",
            "--format onnx",
        )
    example = torch.ones((3, 12), dtype=torch.long)
    example[:, 1:] = torch.arange(1, 12)  # no padding index of any model inside
    mask = torch.ones_like(example)
    mask[1, 7:] = 0
    given = (example, mask, *(torch.zeros_like(example) for _ in graph.inputs[2:]))
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with quietly():
            program = torch.onnx.export(
                graph,
                given,
                dynamo=True,
                dynamic_shapes=(tuple(axes for _ in given),),
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=["logits"],
                verbose=False,
            )
            assert program is not None
            model: onnx.ModelProto = program.model_proto
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(
            f"{graph.base.config.model_type} with method {graph._method} cannot be written as ONNX ({type(error).__name__})",
            "Export it with --format safetensors, or report this with the output of --debug",
            "--format onnx",
        ) from error
    maps = _tidy(model, facts)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return maps


def _tidy(model: Any, facts: dict[str, str]) -> dict[str, list[str]]:
    """Gives axes and products names that say something, and removes notes on where on this machine they come from."""
    model.producer_name, model.doc_string = "posology", ""
    network = model.graph
    network.name, network.doc_string = "posology", ""
    del network.value_info[:], network.metadata_props[:], model.metadata_props[:]
    for name, value in facts.items():
        model.metadata_props.add(key=name, value=value)
    for entry in (*network.input, *network.output):
        for axis, name in zip(entry.type.tensor_type.shape.dim, ("batch", "length"), strict=False):
            if not axis.HasField("dim_value"):
                axis.dim_param = name
    constants = {entry.name for entry in network.initializer}
    maps: dict[str, list[str]] = {}
    for node in network.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes")), "[]")
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants:
            owner = scopes.strip("[]").split(", ")[-2].strip("'").removeprefix("base.")
            own = maps.setdefault(owner, [])
            node.name = f"{owner}/{len(own)}"
            own.append(node.name)
        node.doc_string = ""
        del node.metadata_props[:]
    for entry in (*network.initializer, *network.input, *network.output):
        entry.doc_string = ""
        del entry.metadata_props[:]
    return maps


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keeps exporters from telling what they do."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
