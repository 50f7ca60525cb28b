"""transformers' side of decoder_speed.py: times cases on a model in a folder.

Needs PyTorch and transformers and nothing of ours.
"""

import json
import sys
import time

import numpy as np
import torch
import transformers

ANSWER, VOCABULARY, STEPS = 8, 49152, 4


def main() -> None:
    """Time cases that come in as JSON lines, each after one run to warm up."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        sys.argv[1], dtype=torch.float32
    )
    cases = {"score": _score, "score_all": _score_all, "train": _Trained()}
    for line in sys.stdin:
        what, rows, length, repeat = json.loads(line)
        rng = np.random.default_rng(rows * length)
        ids = torch.from_numpy(rng.integers(3, VOCABULARY, (rows, length)))
        if not repeat:
            cases[what](model, ids)
        start = time.perf_counter()
        value = cases[what](model, ids)
        print(json.dumps([time.perf_counter() - start, value]), flush=True)


@torch.inference_mode()
def _score(model, ids: torch.Tensor, keep: int = ANSWER) -> float:
    """Return the sum of log p of the last tokens of all rows."""
    logits = model(ids[:, :-1], use_cache=False, logits_to_keep=keep).logits
    log_p = torch.log_softmax(logits, dim=-1)[:, -ANSWER:]
    return float(log_p.gather(-1, ids[:, -ANSWER:, None]).sum())


def _score_all(model, ids: torch.Tensor) -> float:
    return _score(model, ids, keep=0)


class _Trained:
    """Training steps: forward, backward, clipping, AdamW; every token is learned."""

    def __init__(self):
        self._optimizer = None

    def __call__(self, model, ids: torch.Tensor) -> float:
        return [self._step(model, ids) for _ in range(STEPS)][-1]

    def _step(self, model, ids: torch.Tensor) -> float:
        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(
                model.parameters(), lr=1e-7, weight_decay=0.0, fused=True
            )
        logits = model(ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())


if __name__ == "__main__":
    main()
