"""Objectives of sequences: along them, of the student's own, between vocabularies, and with a way back."""

from kd.sequences.backspace import Backspaced, Noised, apply_backspace, insert_mistakes
from kd.sequences.gkd import DistiLLMState, distillm_start, distillm_update, gkd, own_sequences, replay_probability
from kd.sequences.likelihood import sequence_kd, token_log_probs
from kd.sequences.minillm import minillm, returns_after, teacher_mixed_logits
from kd.sequences.sequence_match import chi2_reward, sequence_match
from kd.sequences.uld import Alignment, align_spans, hybrid_uld, span_log_probs, uld

__all__ = [
    "Alignment",
    "Backspaced",
    "DistiLLMState",
    "Noised",
    "align_spans",
    "apply_backspace",
    "chi2_reward",
    "distillm_start",
    "distillm_update",
    "gkd",
    "hybrid_uld",
    "insert_mistakes",
    "minillm",
    "own_sequences",
    "replay_probability",
    "returns_after",
    "sequence_kd",
    "sequence_match",
    "span_log_probs",
    "teacher_mixed_logits",
    "token_log_probs",
    "uld",
]
