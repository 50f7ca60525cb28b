"""Evaluation sets that a model can read: in its vocabulary and within its context."""

import dataclasses

import numpy as np

from merging.runtime.errors import UserError
from merging.tasks import EvalSet


def truncate(eval_set: EvalSet, context: int, vocab_size: int) -> tuple[EvalSet, int]:
    """Return the set with no row longer than a model's context, and what that took.

    A prompt that is too long loses its beginning; all choices of an example keep the
    same prompt, that of the longest choice.

    Args:
      eval_set: the set.
      context: the most tokens that the model sees, the prefix token among them.
      vocab_size: rows of its embedding.

    Returns:
      The set, and the number of examples whose prompt was truncated.

    Raises:
      UserError: tokens that the model doesn't know, or an answer that leaves no room
        for a prompt.
    """
    largest = max(
        eval_set.prompts.max(initial=0), eval_set.continuations.max(initial=0)
    )
    if largest >= vocab_size:
        raise UserError(
            f"dataset {eval_set.dataset}: token {largest} is none of the model's "
            f"{vocab_size}; use the tokenizer that the model was trained with"
        )
    # The last token of an answer is never read.
    after = np.full(eval_set.examples, max(eval_set.max_new_tokens, 1))
    if eval_set.ranked:
        np.maximum.at(after, eval_set.groups, eval_set.continuation_lengths)
    prefix = eval_set.bos_id is not None
    room = (context + 1 - prefix - after)[eval_set.groups]
    if room.min() < 1:
        longest = int(after.max())
        raise UserError(
            f"dataset {eval_set.dataset}: answers of {longest} tokens leave no room "
            f"for a prompt in a context of {context}"
        )
    over = np.maximum(eval_set.prompt_lengths - room, 0)
    if not over.any():
        return eval_set, 0
    prompts = np.zeros_like(eval_set.prompts)
    lengths = eval_set.prompt_lengths - over
    for row, (cut, length) in enumerate(zip(over, lengths, strict=True)):
        prompts[row, :length] = eval_set.prompts[row, cut : cut + length]
    shorter = dataclasses.replace(
        eval_set, prompts=prompts, prompt_lengths=lengths.astype(np.int32)
    )
    return shorter, len(np.unique(eval_set.groups[over > 0]))
