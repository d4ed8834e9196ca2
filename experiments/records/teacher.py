"""A teacher's outputs for rows of tokens, computed once: the job behind `data teacher`.

Of every token that a row predicts, the first of the row not among them, the K largest log probabilities are kept, and
two numbers that they do not tell: the log probability of all other tokens together, since a sum of K numbers that were
rounded to float16 leaves it uncertain where it is small, and the log-sum-exp of the logits, which makes a logit of a
log probability. The teacher reads a row as a training does, the documents in it each for itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import UserError
from experiments.files import to_plain
from experiments.language_models import LanguageModel
from experiments.records import tokens
from experiments.records.encoding import Record
from experiments.records.manifest import Manifest, read_manifest
from experiments.records.order import SEGMENT_IDS, TOKENS, widened
from experiments.records.source import Records
from experiments.records.taught import KIND
from experiments.training.config import MeshConfig
from experiments.training.data import fingerprint
from experiments.training.mesh import batch_sharding, make_mesh

if TYPE_CHECKING:
    from experiments.language_models import Trained

IDS, LOG_PROBABILITIES, LOG_REST, LOG_SUM_EXP = "topk_ids", "topk_logprobs", "log_rest", "log_sum_exp"
_LARGEST_SHORT = 2**16


def top_k_outputs(logits: jax.Array, k: int) -> dict[str, jax.Array]:
    """What is kept of logits, not rounded yet: with l = log sum_v exp(z_v) and I the K largest,

    .. math:: \\log p_v = z_v - l \\;(v \\in I), \\qquad \\log \\sum_{v \\notin I} p_v, \\qquad l

    Args:
        logits: (..., V).
        k: K, from 1 to V.

    Returns:
        "topk_ids" and "topk_logprobs" (..., K), falling; "log_rest" (...), -inf where K is V; "log_sum_exp" (...).

    Example:
        >>> kept = top_k_outputs(jnp.log(jnp.array([2.0, 5.0, 1.0])), 1)
        >>> {name: float(jnp.exp(kept[name]).round(6).squeeze()) for name in list(kept)[1:]}
        {'topk_logprobs': 0.625, 'log_rest': 0.375, 'log_sum_exp': 8.0}
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    total = jax.nn.logsumexp(logits, axis=-1)
    largest, ids = jax.lax.top_k(logits, k)
    others = jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False)
    return {
        IDS: ids,
        LOG_PROBABILITIES: largest - total[..., None],
        LOG_REST: jax.nn.logsumexp(others, axis=-1) - total,
        LOG_SUM_EXP: total,
    }


def teacher_sha256(teacher: Trained) -> str:
    """SHA-256 of a model's description and of its weights.

    Args:
        teacher: the model.

    Returns:
        64 hexadecimal digits.
    """
    described = teacher.language_model
    # A module of others has no description in JSON; of its functions the names count, and not where they lie.
    plain = to_plain(described) if isinstance(described, LanguageModel) else re.sub(" at 0x\\w+", "", repr(described))
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(teacher.variables))
    weights = fingerprint({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})
    return hashlib.sha256(json.dumps([plain, weights], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TeacherOutputs:
    """The `experiments.records.writing.Job` that runs a teacher over rows; as many shards as the rows have.

    A batch is split over all devices of this process, each of which holds the whole teacher.

    Attributes:
        teacher: the model.
        folder: of the rows, see `data prepare`.
        top_k: log probabilities that are kept of a token.
        batch_size: rows at once, rounded up to a multiple of the devices.

    Raises:
        UserError: the folder has no rows of tokens, or the teacher cannot read them.
    """

    teacher: Trained
    folder: str | Path
    top_k: int = 64
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Refuse a teacher of other tokens before anything is computed."""
        about, described = self._rows.about, self.teacher.language_model
        if about.get("kind") != tokens.KIND:
            raise UserError(f"{self.folder} holds no rows of tokens; see `data prepare`")
        if tokens.Tokenization(described.tokenizer).sha256 != about["tokenizer_sha256"]:
            raise UserError(f"the teacher's tokenizer is not the one that the rows in {self.folder} were made with")
        if described.vocab_size < about["vocab_size"]:
            raise UserError(f"the teacher has {described.vocab_size} tokens, and the rows {about['vocab_size']}")
        if not 1 <= self.top_k <= about["vocab_size"]:
            raise UserError(f"top_k: got {self.top_k}, expected 1 to {about['vocab_size']}, the tokens of the rows")
        if about["length"] < 2:
            raise UserError("the rows have 1 token each, and a teacher predicts from the second on")
        if described.limit is not None and described.limit < about["length"] - 1:
            raise UserError(f"the teacher reads {described.limit} tokens at most, and a row has {about['length']}")

    @cached_property
    def _rows(self) -> Manifest:
        return read_manifest(self.folder)

    @property
    def name(self) -> str:
        """That of the rows, and whose outputs these are."""
        return f"{self._rows.name}-teacher"

    @property
    def shards(self) -> int:
        """As many as of rows."""
        return len(self._rows.shards)

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What the manifest says of the outputs."""
        rows = self._rows
        return {
            "kind": KIND,
            "teacher_sha256": teacher_sha256(self.teacher),
            "data_sha256": rows.sha256,
            **{name: rows.about[name] for name in ("tokenizer_sha256", "vocab_size", "length")},
            "records": rows.records,
            "top_k": self.top_k,
            "temperature": None,
        }

    @property
    def files(self) -> Mapping[str, str]:
        """None: the tokenizer lies beside the rows."""
        return {}

    def records(self, shard: int) -> Iterator[Record]:
        """A record for every row of a shard, in order."""
        source = Records(self.folder, [shard])
        for start in range(0, len(source), self._batch_size):
            rows = [widened(source[row]) for row in range(start, min(start + self._batch_size, len(source)))]
            found = self._outputs(rows)
            if not np.isfinite(found[LOG_SUM_EXP]).all():
                raise UserError(f"the teacher's logits are not finite for rows from {start} on of shard {shard}")
            yield from ({name: array[row] for name, array in found.items()} for row in range(len(rows)))

    def count(self, record: Record) -> dict[str, int]:
        """Predictions, those of padding included."""
        return {"predictions": len(record[LOG_SUM_EXP])}

    @cached_property
    def _batch_size(self) -> int:
        devices = jax.device_count()
        return -(-self.batch_size // devices) * devices

    @cached_property
    def _program(self) -> Any:
        """(tokens, segment ids) -> what is kept, compiled; on all devices."""
        mesh = make_mesh(MeshConfig())
        sharding = batch_sharding(mesh)
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        variables = jax.device_put(self.teacher.variables, everywhere)

        @jax.jit
        def outputs(variables: Any, tokens: jax.Array, segment_ids: jax.Array) -> dict[str, jax.Array]:
            logits: Any = self.teacher.model.apply(variables, tokens[:, :-1], segment_ids=segment_ids[:, :-1])
            return top_k_outputs(logits[..., : self._rows.about["vocab_size"]], self.top_k)

        def call(*columns: np.ndarray) -> dict[str, jax.Array]:
            with jax.set_mesh(mesh):
                return outputs(variables, *jax.device_put(columns, sharding))

        return call

    def _outputs(self, rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What is stored for some rows, the last ones standing in for those that a batch lacks."""
        filled = [*rows, *[rows[-1]] * (self._batch_size - len(rows))]
        columns = [np.stack([row[name] for row in filled]) for name in (TOKENS, SEGMENT_IDS)]
        return rounded(jax.device_get(self._program(*columns)), self._rows.about["vocab_size"])


def rounded(outputs: Mapping[str, np.ndarray], vocab_size: int) -> dict[str, np.ndarray]:
    """Outputs in the types that are stored: K (2 + 2) + 8 bytes per token, or K (4 + 2) + 8 from 65537 tokens on.

    A log probability x is off by at most max(2^-11 |x|, 2^-25). On the host, because devices may flush the smallest
    float16 to 0.

    Args:
        outputs: of `top_k_outputs`.
        vocab_size: V.

    Returns:
        Ids in uint16 or uint32, log probabilities in float16, the others in float32.

    Example:
        >>> outputs = jax.device_get(top_k_outputs(jnp.zeros((1, 3)), 2))
        >>> [str(array.dtype) for array in rounded(outputs, 3).values()]
        ['uint16', 'float16', 'float32', 'float32']
    """
    ids = np.uint16 if vocab_size <= _LARGEST_SHORT else np.uint32
    types = {IDS: ids, LOG_PROBABILITIES: np.float16, LOG_REST: np.float32, LOG_SUM_EXP: np.float32}
    return {name: np.asarray(outputs[name]).astype(dtype) for name, dtype in types.items()}
