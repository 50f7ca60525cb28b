import jax
import numpy as np
import pytest
import toy_suite

from merging import evaluation
from merging.errors import UserError
from merging.tasks import Generated, Suite

VOCABULARY = len(toy_suite.VOCABULARY)


class Bigram:
    """A language model in NumPy: log p of a token given the one before, BOS = 0."""

    def __init__(self, seed: int):
        logits = np.random.default_rng(seed).normal(0, 3, (VOCABULARY, VOCABULARY))
        self.log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        self.shapes = set()

    def score(self, tokens, prompt_lengths, lengths):
        self.shapes.add(("score", *tokens.shape))
        before = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
        at = np.arange(tokens.shape[1])
        used = (at >= np.c_[prompt_lengths]) & (at < np.c_[lengths])
        return np.sum(self.log_p[before, tokens] * used, -1)

    def score_choices(self, tokens, lengths, choices):
        self.shapes.add(("choices", *tokens.shape))
        return self.log_p[self.last(tokens, lengths)[:, None], choices]

    def generate(self, tokens, lengths, max_new_tokens, eos_id):
        self.shapes.add(("generate", *tokens.shape, max_new_tokens))
        token, done, out = self.last(tokens, lengths), False, []
        for _ in range(max_new_tokens):
            token = self.log_p[token].argmax(-1)
            out.append(np.where(done, 0, token))
            done = done | (token == eos_id)
        return np.stack(out, -1)

    @staticmethod
    def last(tokens, lengths):
        padded = np.pad(tokens, ((0, 0), (1, 0)))
        return padded[np.arange(len(tokens)), lengths]


@pytest.fixture(scope="module")
def toy():
    return Suite("toy", Generated("toy_suite", test_examples=40, train_examples=1))


@pytest.fixture(scope="module")
def sets(toy):
    return evaluation.load_suite(toy, "test")


def by_name(scores):
    return {(s.dataset, s.metric): s.value for s in scores}


def test_scores_name_dataset_metric_and_examples(sets):
    scores = evaluation.evaluate(sets, Bigram(0))
    assert [(s.dataset, s.metric, s.examples) for s in scores] == [
        (d.name, d.metric, 40) for d in toy_suite.DATASETS
    ]
    assert all(0 <= s.value <= 1 for s in scores)


class Oracle(Bigram):
    """Knows one set's answers by their prompts; with sign -1, how to avoid them."""

    def __init__(self, eval_set, sign):
        super().__init__(0)
        self.sign, self.answers = sign, {}
        for m, target in enumerate(eval_set.targets):
            prompt = tuple(eval_set.prompts[m, : eval_set.prompt_lengths[m]])
            answer = eval_set.continuations[m, : eval_set.continuation_lengths[m]]
            if not eval_set.ranked or target[1]:
                self.answers[prompt] = list(answer)
        assert len(self.answers) == eval_set.examples

    def score(self, tokens, prompt_lengths, lengths):
        rows = zip(tokens, prompt_lengths, lengths, strict=True)
        right = [list(t[p:n]) == self.answers[tuple(t[:p])] for t, p, n in rows]
        return self.sign * np.array(right)

    def score_choices(self, tokens, lengths, choices):
        rows = zip(tokens, lengths, strict=True)
        right = [self.answers[tuple(t[:n])][0] for t, n in rows]
        return self.sign * (choices == np.c_[right])

    def generate(self, tokens, lengths, max_new_tokens, eos_id):
        out = np.zeros((len(tokens), max_new_tokens), int)
        for row, t, n in zip(out, tokens, lengths, strict=True):
            answer = self.answers[tuple(t[:n])] if self.sign > 0 else []
            row[: len(answer) + 1] = [*answer, eos_id]
        return out


@pytest.mark.parametrize("index", range(len(toy_suite.DATASETS)))
def test_a_model_that_knows_the_answers_scores_one_and_its_opposite_zero(sets, index):
    one = sets[index]
    assert evaluation.evaluate([one], Oracle(one, 1))[0].value == 1
    assert evaluation.evaluate([one], Oracle(one, -1))[0].value == 0


def test_values_do_not_depend_on_batch_size_order_or_company(sets):
    expected = by_name(evaluation.evaluate(sets, Bigram(1), batch_size=256))
    assert len(set(expected.values())) > 3
    for size in (1, 7, 64):
        assert by_name(evaluation.evaluate(sets, Bigram(1), batch_size=size)) == (
            expected
        )
    assert by_name(evaluation.evaluate(sets[::-1], Bigram(1))) == expected
    alone = [evaluation.evaluate([one], Bigram(1)) for one in sets]
    assert by_name(sum(alone, [])) == expected


def test_single_token_choices_score_the_same_either_way(sets, monkeypatch):
    ranked = [s for s in sets if s.dataset in ("colour", "pair")]
    fast = evaluation.outputs(evaluation.prepare(ranked), Bigram(2))
    monkeypatch.setattr(evaluation, "_kind", lambda s: ("score",))
    slow = evaluation.outputs(evaluation.prepare(ranked), Bigram(2))
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_batches_have_few_shapes_in_steps_of_sixteen(sets):
    model = Bigram(0)
    evaluation.evaluate(sets, model, batch_size=32)
    room = {s.max_new_tokens for s in sets if not s.ranked}
    ranked = {("choices", 32, 16), ("choices", 32, 32), ("score", 32, 32)}
    assert model.shapes >= ranked - {("choices", 32, 16)}
    assert model.shapes <= ranked | {
        ("generate", 32, t, n) for t in (16, 32) for n in room
    }


def test_sets_with_one_token_choices_share_their_batches(sets):
    jobs = evaluation.prepare(sets, batch_size=16).jobs
    first = [sets[i].dataset for i, _ in jobs[0].sets]
    assert first == ["colour", "pair"]
    assert len(jobs[0].batches) == 5  # 2 × 40 prompts, and not 40 × (3 + 2) rows


def test_a_mesh_gives_the_same_values(sets):
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    prepared = evaluation.prepare(sets, batch_size=64, sharding=sharding)
    (tokens, *_) = prepared.jobs[0].batches[0].arrays
    assert tokens.sharding.is_equivalent_to(sharding, 2)
    table = jax.numpy.asarray(Bigram(3).log_p)

    class OnDevice(Bigram):
        def score_choices(self, tokens, lengths, choices):
            rows = jax.numpy.arange(len(tokens))
            last = jax.numpy.pad(tokens, ((0, 0), (1, 0)))[rows, lengths]
            return table[last[:, None], choices]

    expected = by_name(evaluation.evaluate(sets, Bigram(3)))
    assert by_name(evaluation.evaluate(prepared, OnDevice(3))) == expected


def test_a_batch_that_the_mesh_does_not_divide_is_refused(sets):
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    with pytest.raises(UserError, match="a batch of 12 does not split evenly"):
        evaluation.prepare(sets, batch_size=12, sharding=sharding)


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(UserError, match="no datasets"):
        evaluation.prepare([])
    with pytest.raises(UserError, match="batch size 0"):
        evaluation.prepare([object()], batch_size=0)


@pytest.mark.parametrize("dataset", ["colour", "phrase", "bag", "retell"])
def test_seqios_own_evaluator_finds_the_same_values(toy, sets, dataset):
    from merging.tasks.registration import register, seqio

    register(toy)
    model = Bigram(4)
    task = toy.evaluations(dataset)[""]
    evaluator = seqio.Evaluator(
        task,
        seqio.DecoderFeatureConverter(pack=False),
        eval_split="test",
        async_compute_metrics=False,
    )

    (room,) = [s.max_new_tokens for s in sets if s.dataset == dataset]

    def score(ds, model_feature_shapes=None):
        return [(int(i), float(_log_p(model, ex))) for i, ex in ds.as_numpy_iterator()]

    def predict(ds, model_feature_shapes=None):
        return [(int(i), _greedy(model, ex, room)) for i, ex in ds.as_numpy_iterator()]

    metrics, _ = evaluator.evaluate(
        compute_metrics=True, score_fn=score, predict_fn=predict, step=0
    )
    (expected,) = metrics.result()[task].values()
    ours = [s for s in evaluation.evaluate(sets, model) if s.dataset == dataset]
    assert ours[0].value == pytest.approx(float(expected), abs=1e-12)
    assert 0 < ours[0].value < 1


def _log_p(model, ex):
    """Score a row as seqio's converter lays it out, independently of `Bigram.score`."""
    log_p = model.log_p[ex["decoder_input_tokens"], ex["decoder_target_tokens"]]
    return np.sum(log_p * ex["decoder_loss_weights"])


def _greedy(model, ex, room):
    start = int(np.argmax(ex["decoder_loss_weights"]))
    token, out = ex["decoder_input_tokens"][start], []
    while len(out) < room and (not out or out[-1] != 1):
        token = int(model.log_p[token].argmax())
        out.append(token)
    return out
