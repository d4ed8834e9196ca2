"""Trained causal language models: a description in plain JSON, and models read back from trainings and exports.

A training is described by `model.json` in its folder, beside its checkpoints. An export is a folder with `config.json`,
whose `model_type` says who reads it, `model.safetensors`, and `tokenizer.json` unless the tokens are bytes. Tensors are
named by the path of their parameter, joined by dots. Checkpoints of Mamba, Mamba-2 and LightNet in the layouts of
others are folders with `config.json` and safetensors too.

Importing this module imports no JAX.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_origin, get_type_hints

from experiments.distributed import is_primary
from experiments.errors import UserError
from experiments.files import as_path, make_folder, read_json, replace_folder, to_plain, write_json
from experiments.mixers import MIXERS, POSITIONS, mixer, positions
from experiments.pretrained import TOKENIZER, PretrainedModel, read_pretrained
from experiments.registry import unknown
from experiments.text_stream import Vocabulary

if TYPE_CHECKING:
    from lightnet.backbone import CausalLM

DESCRIPTION, CHECKPOINTS = "model.json", "checkpoints"
CONFIG, TENSORS = "config.json", "model.safetensors"
MODEL_TYPE = "lightnet_lab"
ACTIVATIONS = ("silu", "sigmoid", "gelu", "relu", "tanh")  # names in flax.linen
_MOST_LABELS = 12  # that one line lists
_KINDS = {int: "an integer", str: "a string", bool: "true or false", Mapping: "an object"}


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Vocabulary):
    """A causal language model: a stack of `lightnet.models.causal_lm`, and what its tokens are.

    Attributes:
        vocab_size: number of tokens.
        mixer: one of `experiments.mixers.MIXERS`.
        mixer_options: fields of the mixer; functions by name, see ACTIVATIONS.
        positions: one of `experiments.mixers.POSITIONS`.
        position_options: fields of the encodings, by the argument that takes the encoding: for example
            `{"input_positions": {"rank": 16}, "relative": {"learned": True}}`.
        num_layers: blocks.
        width: channels.
        num_heads: heads.
        hidden: width of the GLU.
        tied: whether the output kernel is the embedding.
        length: most tokens of a sequence, for positions that have a limit.
        tokenizer: JSON of a Hugging Face tokenizer (`tokenizers.Tokenizer.to_str`); None reads bytes.
        scan_layers: whether the blocks are a loop over stacked parameters, see `lightnet.backbone.Backbone`. A model
            that is read back has them one by one.

    Raises:
        ValueError: a name that does not exist.

    Example:
        >>> small = LanguageModel(vocab_size=256, num_layers=1, width=8, num_heads=2, hidden=16)
        >>> small.build().backbone.num_layers
        1
    """

    vocab_size: int = field(kw_only=False)
    mixer: str = "lightnet"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    positions: str = "both"
    position_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    num_layers: int
    width: int
    num_heads: int
    hidden: int
    tied: bool = True
    length: int = 0
    tokenizer: str | None = None
    scan_layers: bool = False

    def __post_init__(self) -> None:
        """Check the names."""
        if self.mixer not in MIXERS:
            raise ValueError(unknown("mixer", self.mixer, MIXERS))
        if self.positions not in POSITIONS:
            raise ValueError(unknown("positions", self.positions, POSITIONS))
        for argument in self.position_options:
            if argument not in ("relative", "input_positions"):
                raise ValueError(unknown("argument in position_options", argument, ("relative", "input_positions")))

    @property
    def limit(self) -> int | None:
        """Most tokens that the model can read; None if there is no limit."""
        return self.length if self.positions == "learned" else None

    def build(self, *, cache: int = 0, **stack_options: Any) -> CausalLM:
        """The model.

        Args:
            cache: tokens that softmax attention keeps to generate; the other mixers have a state of fixed size anyway.
            **stack_options: `dtype`, `remat` and `dropout`, see `lightnet.models.stack`.

        Returns:
            The model, whose parameters do not depend on the arguments.

        Raises:
            ValueError: an option that the mixer or an encoding does not have, or a mixer that sees the future.
        """
        from lightnet.models import Size, causal_lm

        size = Size(self.num_layers, self.width, self.num_heads, "described", hidden=self.hidden)
        options = {name: _activation(name, value) for name, value in self.mixer_options.items()}
        if cache and self.mixer == "softmax":
            options["max_length"] = cache
        return causal_lm(
            size,
            self.vocab_size,
            mixer=_checked("mixer_options", mixer(self.mixer, causal=True), options),
            tied=self.tied,
            scan_layers=self.scan_layers,
            **self._encodings(),
            **stack_options,
        )

    def _encodings(self) -> dict[str, Any]:
        """The arguments `relative` and `input_positions`."""
        encodings = positions(self.positions, length=self.length)
        for argument, options in self.position_options.items():
            if encodings[argument] is None:
                raise ValueError(f"position_options: got {argument}, which positions={self.positions!r} does not have")
            encodings[argument] = _checked("position_options", encodings[argument], options)
        return encodings


def describe(folder: str | Path, language_model: LanguageModel) -> None:
    """Write what a training trains into its folder, so that `load` can read it back.

    Args:
        folder: the one that is given to `experiments.training.loop.train`, whose variables must be those of
            `language_model.build().init`; made if it is not there.
        language_model: what is trained.

    Raises:
        OSError: if it could not be written.
    """
    if is_primary():
        write_json(make_folder(folder) / DESCRIPTION, language_model)


class Trained(NamedTuple):
    """A model with its weights.

    Attributes:
        language_model: what it is.
        model: as `language_model.build()` makes it.
        variables: its parameters.
    """

    language_model: LanguageModel | PretrainedModel
    model: CausalLM
    variables: Any


def load(path: str | Path, label: str | None = None) -> Trained:
    """Read a trained model: the newest checkpoint of a training, averaged weights if there are, or a folder of tensors.

    Args:
        path: folder of a training, of a run with described trainings in it, of an export, or of a checkpoint in the
            layout of Hugging Face, of `mamba_ssm` or of flash-linear-attention.
        label: which training of a run, by its folder in there; needed where there are several.

    Returns:
        The model and its weights, on the first device.

    Raises:
        UserError: there is no such model, or several and none is named, or its files do not fit each other.
    """
    folder = as_path(path)
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    kind = config.get("model_type", "mamba" if {"d_model", "n_layer"} <= config.keys() else None)
    if kind is None:
        return _checkpointed(_training(folder, label))
    if label is not None:
        raise UserError(f"--model: got {label!r}, but {folder} is one exported model")
    if kind not in LOADERS:
        raise UserError(f"{folder}: {unknown('model_type', str(kind), LOADERS)}")
    return LOADERS[kind](folder, config)


def export(folder: str | Path, trained: Trained) -> None:
    """Write a model as `config.json`, `model.safetensors` and, unless its tokens are bytes, `tokenizer.json`.

    Args:
        folder: on this machine; absent, empty, or an earlier export, which is replaced as a whole.
        trained: the model.

    Raises:
        UserError: the folder holds something else, or the model is one that was not trained here.
        OSError: it could not be written; an earlier export is then untouched.
    """
    import numpy as np
    from safetensors.numpy import save

    if isinstance(trained.language_model, PretrainedModel):
        raise UserError("the model is a checkpoint with safetensors already, in the layout of others: copy its folder")
    folder = Path(folder)
    _refuse_foreign(folder)
    config = {"model_type": MODEL_TYPE, **to_plain(trained.language_model)}
    tokenizer = config["tokenizer"]
    config["tokenizer"] = TOKENIZER if tokenizer else None
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in _named(trained.variables["params"]).items()}
    files = {CONFIG: (json.dumps(config, indent=2) + "\n").encode(), TENSORS: save(tensors)}
    replace_folder(folder, files | ({TOKENIZER: tokenizer.encode()} if tokenizer else {}))


def _training(folder: Path, label: str | None) -> Path:
    """Folder of the training that is meant."""
    found = {training.relative_to(folder).as_posix(): training for training in _trainings(folder)}
    if not found:
        raise UserError(f"no trained language model in {folder}: it is no training, run or export of one")
    if label is not None and label not in found:
        raise UserError(f"--model: {unknown('model', label, found)}")
    if label is None and len(found) > 1:
        more = f" and {len(found) - _MOST_LABELS} more" if len(found) > _MOST_LABELS else ""
        names = ", ".join(list(found)[:_MOST_LABELS])
        raise UserError(f"{folder} holds {len(found)} models; choose one with --model: {names}{more}")
    return next(iter(found.values())) if label is None else found[label]


def _trainings(folder: Path) -> Iterator[Path]:
    """Described trainings with checkpoints, in and below a folder."""
    if (folder / DESCRIPTION).is_file() and (folder / CHECKPOINTS).is_dir():
        yield folder
    elif folder.is_dir():
        for inside in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
            yield from _trainings(inside)


def _checkpointed(folder: Path) -> Trained:
    from contextlib import closing

    import jax

    from experiments.training.checkpoint import Checkpoints
    from lightnet.backbone import unstack_layers

    language_model, model, variables = _described(folder / DESCRIPTION, read_json(folder / DESCRIPTION))
    like = {"params": variables}  # the loop's own "params" are all that is trained, and collections beside them
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with closing(Checkpoints(folder / CHECKPOINTS, read_only=True)) as checkpoints:
        fields = checkpoints.restore_params(like, jax.tree.map(lambda _: place, like), ema=True)
    if not language_model.scan_layers:
        return Trained(language_model, model, fields["params"])
    one_by_one = dataclasses.replace(language_model, scan_layers=False)
    return Trained(one_by_one, one_by_one.build(), unstack_layers(fields["params"]))


def _exported(folder: Path, config: dict[str, Any]) -> Trained:
    """A model that `export` wrote."""
    import jax
    import jax.numpy as jnp
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    del config["model_type"]
    if "tokenizer" not in config or config["tokenizer"] not in (None, TOKENIZER):
        raise UserError(f"{folder / CONFIG}: got no tokenizer, expected {TOKENIZER!r} or null")
    if config["tokenizer"] is not None:
        if not (folder / TOKENIZER).is_file():
            raise UserError(f"{folder / TOKENIZER} does not exist, and {CONFIG} says that it belongs to the model")
        config = {**config, "tokenizer": (folder / TOKENIZER).read_text(encoding="utf-8")}
    language_model, model, variables = _described(folder / CONFIG, config)
    shapes = variables["params"]
    try:
        tensors = load_file(folder / TENSORS)
    except FileNotFoundError:
        raise UserError(f"{folder / TENSORS} does not exist") from None
    except SafetensorError as error:
        raise UserError(f"{folder / TENSORS} is damaged: {error}") from None
    _refuse_other_tensors(folder / TENSORS, tensors, _named(shapes))
    leaves = [jnp.asarray(tensors[name], leaf.dtype) for name, leaf in _named(shapes).items()]
    return Trained(language_model, model, {"params": jax.tree.unflatten(jax.tree.structure(shapes), leaves)})


def _mamba(folder: Path, config: dict[str, Any]) -> Trained:
    from ssm.pretrained import load_pretrained

    return Trained(*read_pretrained(folder, load_pretrained))


def _lightnet(folder: Path, config: dict[str, Any]) -> Trained:
    from lightnet.pretrained import load_pretrained

    return Trained(*read_pretrained(folder, load_pretrained))


# How a folder with a `config.json` is read, by its `model_type`; that of `mamba_ssm` has none.
LOADERS: dict[str, Callable[[Path, dict[str, Any]], Trained]] = {
    MODEL_TYPE: _exported,
    "mamba": _mamba,
    "mamba2": _mamba,
    "lightnet": _lightnet,
}


def _described(path: Path, plain: Mapping[str, Any]) -> tuple[LanguageModel, CausalLM, Any]:
    """The description that a file holds, its model, and shapes and dtypes of the variables."""
    known = {entry.name: entry for entry in dataclasses.fields(LanguageModel)}
    required = {name for name, entry in known.items() if entry.default is entry.default_factory is dataclasses.MISSING}
    wrong = [f"no {name}" for name in required - plain.keys()] + [f"unknown {name}" for name in plain.keys() - known]
    if wrong:
        raise UserError(f"{path} does not describe a language model: {', '.join(sorted(wrong))}")
    for name, hint in get_type_hints(LanguageModel).items():
        kind = str if name == "tokenizer" else get_origin(hint) or hint
        if (value := plain.get(name)) is None and (name == "tokenizer" or name not in plain):
            continue
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UserError(f"{path}: {name} is {value!r}, expected {_KINDS[kind]}")
    try:
        language_model = LanguageModel(**plain)
        model = language_model.build()
        return language_model, model, _shapes(model)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None


def _shapes(model: CausalLM) -> Any:
    """Shapes and dtypes of the variables."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    return nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))


def _named(tree: Any) -> dict[str, Any]:
    """Path of each leaf, joined by dots -> the leaf, in the order of the tree."""
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _refuse_other_tensors(path: Path, tensors: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    wrong = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    wrong += [f"unknown {name}" for name in sorted(tensors.keys() - expected.keys())]
    for name in sorted(tensors.keys() & expected.keys()):
        if (got := tensors[name].shape) != (needed := expected[name].shape):
            wrong.append(f"{name} of shape {list(got)} instead of {list(needed)}")
    if wrong:
        more = f" and {len(wrong) - _MOST_LABELS} more" if len(wrong) > _MOST_LABELS else ""
        raise UserError(f"{path} does not fit {CONFIG}: {', '.join(wrong[:_MOST_LABELS])}{more}")


def _refuse_foreign(folder: Path) -> None:
    """Refuse to replace anything but an earlier export."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, and a folder is needed there")
    inside = {entry.name for entry in folder.iterdir()}
    is_export = CONFIG in inside and read_json(folder / CONFIG).get("model_type") == MODEL_TYPE
    if others := inside if not is_export else inside - {CONFIG, TENSORS, TOKENIZER}:
        raise UserError(f"{folder} is not empty and no export: it holds {sorted(others)[0]}; choose another folder")


def _activation(name: str, value: Any) -> Any:
    """An option of a mixer, functions given by their names."""
    if not name.endswith("activation") or not isinstance(value, str):
        return value
    if value not in ACTIVATIONS:
        raise ValueError(f"{name}: {unknown('activation', value, ACTIVATIONS)}")
    import flax.linen as nn

    return getattr(nn, value)


def _checked(argument: str, constructor: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """A constructor with more of its fields, which must exist."""
    given = constructor if isinstance(constructor, partial) else partial(constructor)
    kind: Any = given.args[0] if given.args else given.func
    fields = [entry.name for entry in dataclasses.fields(kind) if entry.name not in ("parent", "name")]
    for name in options:
        if name not in fields:
            raise ValueError(f"{argument}: {unknown(f'field of {kind.__name__}', name, fields)}")
    return partial(constructor, **options) if options else constructor
