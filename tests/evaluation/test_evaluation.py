import dataclasses
import functools
import importlib
import itertools

import jax
import numpy as np
import pytest
import toy_suite
from tolerance import decoder_length, rounding

from merging import evaluation, models, tasks
from merging.evaluation.batches import choose_shapes
from merging.evaluation.requests import template_requests
from merging.runtime import sharding
from merging.runtime.errors import UserError
from merging.tasks import Generated, Suite
from merging.tasks.metrics import seqio_metric

VOCABULARY = len(toy_suite.VOCABULARY)
FACTS = {dataset.name: dataset for dataset in toy_suite.DATASETS}
FACTS["made"] = toy_suite.Dataset("made", "", "held_out", "accuracy", 0.0)


def asked(eval_sets, metrics=None):
    """Return the requests of these sets: of their dataset's metric, or of others."""
    facts = [FACTS[one.dataset] for one in eval_sets]
    return evaluation.Requests(
        tuple(
            template_requests(of, metrics or (of.metric,), one)
            for of, one in zip(facts, eval_sets, strict=True)
        )
    )


def predictions(eval_sets, model, metrics=None, **how):
    batches = evaluation.prepare(asked(eval_sets, metrics), **how)
    return evaluation.predict(batches, model)


def evaluate(eval_sets, model, metrics=None, **how):
    return evaluation.evaluate(asked(eval_sets, metrics), model, **how)


# Scores of a NumPy model are float64, and kept as float32: one rounding.
KEPT = rounding(1)


class Bigram:
    """A language model in NumPy: log p of a token given the one before, BOS = 0."""

    def __init__(self, seed: int):
        logits = np.random.default_rng(seed).normal(0, 3, (VOCABULARY, VOCABULARY))
        self.log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        self.shapes = set()

    def score(self, prefixes, tokens, lengths, firsts, segments, targets):
        self.shapes.add(("score", *tokens.shape, segments.shape[1]))
        last = self.last(prefixes, tokens, lengths)
        scores = self.log_p[last[:, None], firsts]
        rows = np.arange(len(tokens))[:, None]
        slots = np.c_[lengths] + np.arange(segments.shape[1])
        before = tokens[rows, np.minimum(slots, tokens.shape[1] - 1)]
        log_p = self.log_p[before, targets]
        for c in range(firsts.shape[1]):
            scores[:, c] += np.sum(log_p * (segments == c), -1)
        return scores

    def generate(self, prefixes, tokens, lengths, max_new_tokens, end_ids):
        self.shapes.add(("generate", *tokens.shape, max_new_tokens))
        token, done, out = self.last(prefixes, tokens, lengths), False, []
        for _ in range(max_new_tokens):
            token = self.log_p[token].argmax(-1)
            out.append(np.where(done, 0, token))
            done = done | np.isin(token, end_ids)
        return np.stack(out, -1)

    @staticmethod
    def last(prefixes, tokens, lengths):
        padded = np.c_[prefixes, tokens]
        return padded[np.arange(len(tokens)), lengths]


@pytest.fixture(scope="module")
def toy():
    return Suite("toy", Generated("toy_suite", test_examples=40, train_examples=1))


@pytest.fixture(scope="module")
def sets(toy):
    return tasks.load_suite(toy, "test")


def by_name(scores):
    return {
        (score.dataset, metric): value
        for score in scores
        for metric, value in score.templates[""].values.items()
    }


def test_scores_name_dataset_metric_and_examples(sets):
    scores = evaluate(sets, Bigram(0))
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

    def score(self, prefixes, tokens, lengths, firsts, segments, targets):
        scores = np.zeros(firsts.shape)
        for row, length in enumerate(lengths):
            answer = self.answers[tuple(tokens[row, :length])]
            for c, first in enumerate(firsts[row]):
                choice = [first, *targets[row][segments[row] == c]]
                scores[row, c] = self.sign * (choice == answer)
        return scores

    def generate(self, prefixes, tokens, lengths, max_new_tokens, end_ids):
        out = np.zeros((len(tokens), max_new_tokens), int)
        for row, t, n in zip(out, tokens, lengths, strict=True):
            answer = self.answers[tuple(t[:n])] if self.sign > 0 else []
            row[: len(answer) + 1] = [*answer, end_ids[0]]
        return out


@pytest.mark.parametrize("index", range(len(toy_suite.DATASETS)))
def test_a_model_that_knows_the_answers_scores_one_and_its_opposite_zero(sets, index):
    one = sets[index]
    assert evaluate([one], Oracle(one, 1))[0].value == 1
    assert evaluate([one], Oracle(one, -1))[0].value == 0


def test_values_do_not_depend_on_batch_size_order_or_company(sets):
    expected = by_name(evaluate(sets, Bigram(1), batch_size=256))
    assert len(set(expected.values())) > 3
    for size in (1, 7, 64):
        assert by_name(evaluate(sets, Bigram(1), batch_size=size)) == (expected)
    assert by_name(evaluate(sets[::-1], Bigram(1))) == expected
    alone = [evaluate([one], Bigram(1)) for one in sets]
    assert by_name(sum(alone, [])) == expected


def whole(model, one):
    """Score every row on its own: log p of its continuation, token by token."""
    found = []
    for m in range(len(one.groups)):
        prompt = one.prompts[m, : one.prompt_lengths[m]]
        choice = one.continuations[m, : one.continuation_lengths[m]]
        row = [one.bos_id, *prompt, *choice]
        pairs = zip(row[len(prompt) :], choice, strict=False)
        found.append(sum(model.log_p[before, token] for before, token in pairs))
    return found


def test_choices_that_share_a_prompt_score_as_every_row_on_its_own(sets):
    ranked = [s for s in sets if s.ranked]
    answers = predictions(ranked, Bigram(2), batch_size=16)
    for one, answer in zip(ranked, answers, strict=True):
        np.testing.assert_allclose(answer.outputs, whole(Bigram(2), one), rtol=KEPT)


def test_choices_whose_prompts_differ_are_scored_behind_their_own(sets):
    (one,) = [s for s in sets if s.dataset == "phrase"]
    prompts = one.prompts.copy()
    prompts[1::2, 0] = 5  # every second choice
    one = dataclasses.replace(one, prompts=prompts)
    (answer,) = predictions([one], Bigram(2))
    np.testing.assert_allclose(answer.outputs, whole(Bigram(2), one), rtol=KEPT)


def test_many_continuations_are_dealt_out_to_several_rows(sets, monkeypatch):
    (one,) = [s for s in sets if s.dataset == "phrase"]
    module = importlib.import_module("merging.evaluation.requests")
    monkeypatch.setattr(module, "MAX_CHOICES", 1)
    prepared = evaluation.prepare(asked([one]), batch_size=16)
    assert len(prepared.batches) == 5  # 80 rows
    (answer,) = evaluation.predict(prepared, Bigram(2))
    np.testing.assert_allclose(answer.outputs, whole(Bigram(2), one), rtol=KEPT)


def test_a_choice_on_its_own_is_scored_behind_the_prefix_if_a_metric_asks(sets):
    (one,) = [s for s in sets if s.dataset == "phrase"]
    (plain,) = predictions([one], Bigram(2))
    assert plain.unconditional is None
    metrics = ("accuracy", "accuracy_unconditional")
    (answer,) = predictions([one], Bigram(2), metrics)
    nothing = dataclasses.replace(one, prompt_lengths=0 * one.prompt_lengths)
    expected = whole(Bigram(2), nothing)
    np.testing.assert_allclose(answer.unconditional, expected, rtol=KEPT)
    by_example = (answer.outputs - expected).reshape(-1, 2)
    right = np.array([t[1] for t in one.targets]).reshape(-1, 2).argmax(-1)
    value = np.mean(by_example.argmax(-1) == right)
    scores = by_name(evaluate([one], Bigram(2), metrics))
    assert scores["phrase", "accuracy_unconditional"] == pytest.approx(value)
    assert value != scores["phrase", "accuracy"]


def test_without_an_opening_token_the_rows_first_token_opens(sets):
    class Seen(Bigram):
        def score(self, prefixes, tokens, lengths, *continuations):
            self.rows |= {
                (o, *t[:n]) for o, t, n in zip(prefixes, tokens, lengths, strict=True)
            }
            return super().score(prefixes, tokens, lengths, *continuations)

    (one,) = [s for s in sets if s.dataset == "colour"]
    prompts = {
        tuple(p[:n]) for p, n in zip(one.prompts, one.prompt_lengths, strict=True)
    }
    for bos_id, rows in ((None, prompts), (7, {(7, *p) for p in prompts})):
        model = Seen(0)
        model.rows = set()
        bare = dataclasses.replace(one, bos_id=bos_id)
        (answer,) = predictions([bare], model)
        assert model.rows == rows
        np.testing.assert_allclose(answer.outputs, whole(Bigram(0), one), rtol=KEPT)


def test_batches_have_few_shapes_in_steps_of_sixteen(sets):
    model = Bigram(0)
    evaluate(sets, model, batch_size=32)
    room = {s.max_new_tokens for s in sets if not s.ranked}
    ranked = {("score", 32, t, m) for t in (15, 31) for m in (0, 16)}
    assert any(shape[0] == "score" for shape in model.shapes)
    assert model.shapes <= ranked | {
        ("generate", 32, t, n) for t in (15, 31) for n in room
    }


def made_of(tokens, tails):
    """Return a set of examples with so many tokens behind the prefix token.

    An example has two choices, of which the first has ``tails`` tokens but one.
    """
    n = len(tokens)
    longest = np.stack([np.array(tails) + 1, np.ones(n, int)], 1).ravel()
    metric = seqio_metric("accuracy")
    return tasks.EvalSet(
        *("made", "", 0, 0, True),
        prompts=np.full((2 * n, max(tokens)), 3, np.int32),
        prompt_lengths=np.repeat(np.array(tokens) - tails, 2),
        continuations=np.full((2 * n, longest.max()), 4, np.int32),
        continuation_lengths=longest,
        groups=np.repeat(np.arange(n), 2),
        targets=((), ()) * n,
        metrics=(metric,),
        decode=str,
        postprocess=None,
        end_ids=(1,),
        max_new_tokens=0,
    )


def best_widths(needed, most, worth):
    """Return the lowest cost with at most so many widths, by trying all choices."""
    ends = sorted(set(needed))
    found = []
    for k in range(1, most + 1):
        for chosen in itertools.combinations(ends[:-1], k - 1):
            widths = [*chosen, ends[-1]]
            padded = [min(w for w in widths if w >= n) + 1 for n in needed]
            found.append(sum(padded) + k * worth)
    return min(found)


def test_widths_are_those_that_pad_least_for_what_they_cost():
    lengths = np.random.default_rng(0).gamma(4, 10, 200).astype(int) + 1
    one = made_of(lengths, np.zeros(200, int))
    needed = (-(-(lengths + 1) // 16) * 16 - 1).tolist()
    numbers = []
    for worth in (100, 300, 1_000, 10**6):
        shapes = choose_shapes(asked([one]), worth)
        widths = [shape.width for shape in shapes.scored]
        numbers.append(len(widths))
        assert widths == sorted(widths) and widths[-1] >= lengths.max()
        assert all(s.tail == 0 and (s.width + 1) % 16 == 0 for s in shapes.scored)
        padded = sum(min(w for w in widths if w >= n) + 1 for n in needed)
        paid = padded + len(widths) * worth
        assert paid == best_widths(needed, len(set(needed)), worth)
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] > 4 and numbers[-1] == 1
    by_default = choose_shapes(asked([one]))
    assert by_default == choose_shapes(asked([one]), 0.03 * (lengths + 1).sum())


def test_long_tails_have_shapes_of_their_own_where_that_is_worth_it():
    few, many = made_of([60, 100], [40, 70]), made_of([60] * 300, [0] * 300)
    apart = choose_shapes(asked([few, many]), 100)
    assert apart.choices == 4  # the least
    assert apart.scored == ((63, 0), (111, 128))
    assert choose_shapes(asked([few, many]), 10**5).scored == ((111, 128),)
    assert choose_shapes(asked([many]), 100).scored == ((63, 0),)
    assert choose_shapes(asked([many]), 100).generated == ()


def test_some_of_the_datasets_are_cut_in_the_shapes_of_all(sets):
    requests = asked([*sets, made_of([100] * 3000, [0] * 3000)])
    shapes = choose_shapes(requests)
    names = [s.dataset for s in sets]
    prepared = evaluation.prepare(requests, datasets=names, batch_size=32)
    assert [one.dataset.name for one in prepared.sets] == names
    found = {(b.arrays[1].shape[1], b.arrays[-1].shape) for b in prepared.batches}
    room = {(s.width, (32, s.tail)) for s in shapes.scored}
    assert found <= room | {(s.width, (32,)) for s in shapes.generated}
    own = {s.width for s in choose_shapes(asked(sets)).scored}
    assert own != {width for width, _ in found}
    plain = evaluate(sets, Bigram(3))
    some = evaluation.evaluate(requests, Bigram(3), datasets=names)
    assert by_name(plain) == by_name(some)


def test_batches_of_all_requests_are_made_once_for_many_models(sets):
    requests = asked(sets)
    assert evaluation.prepare(requests) is evaluation.prepare(requests)
    other = evaluation.prepare(requests, batch_size=16)
    assert other is not evaluation.prepare(requests)


def test_what_would_not_fill_a_batch_goes_where_there_is_room():
    short, long = made_of([10] * 20, [0] * 20), made_of([60] * 13, [0] * 13)
    shapes = choose_shapes(asked([short, long]), 1)
    assert shapes.scored == ((15, 0), (63, 0))
    prepared = evaluation.prepare(asked([short, long]), batch_size=16, compile_cost=1)
    batches = [(b.arrays[1].shape[1], len(b.requests)) for b in prepared.batches]
    # 3 of the short ones go where 3 places are left among the long.
    assert batches == [(63, 16), (15, 16), (15, 1)]
    seen = np.concatenate([batch.requests for batch in prepared.batches])
    assert sorted(seen) == list(range(33))


def test_a_shape_is_paid_for_by_every_number_of_tokens_to_generate():
    one = dataclasses.replace(
        made_of([10] * 30 + [60] * 3, [0] * 33), ranked=False, max_new_tokens=8
    )
    other = dataclasses.replace(one, max_new_tokens=24)
    # A second width saves 48 tokens of each of two sets' 60 short rows.
    worth = 48 * 120
    alone = choose_shapes(asked([one, one]), worth - 1)
    assert [shape.width for shape in alone.generated] == [15, 63]
    both = choose_shapes(asked([one, other]), worth - 1)
    assert [shape.width for shape in both.generated] == [63]


def test_sets_with_one_token_choices_share_their_batches(sets):
    ranked = [s for s in sets if s.dataset in ("colour", "pair")]
    # 2 × 40 prompts, and not 40 × (3 + 2) rows
    assert len(evaluation.prepare(asked(ranked), batch_size=16).batches) == 5


def test_the_share_of_padding_is_that_of_slots_without_a_token(sets):
    (one,) = [s for s in sets if s.dataset == "colour"]
    prepared = evaluation.prepare(asked([one]), batch_size=16)
    lengths = one.prompt_lengths[::3] + 1
    slots = sum(np.size(b.arrays[1]) + 16 for b in prepared.batches)
    assert prepared.padding == pytest.approx(1 - lengths.sum() / slots)
    assert 0 < prepared.padding < 0.7


def test_a_mesh_gives_the_same_values(sets):
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    how = dict(batch_size=64, sharding=rows)
    prepared = evaluation.prepare(asked(sets), **how)
    (_, tokens, *_) = prepared.batches[0].arrays
    assert tokens.sharding.is_equivalent_to(rows, 2)
    expected = by_name(evaluate(sets, Bigram(3)))

    class OnHost(Bigram):
        def score(self, *arguments):
            return super().score(*map(np.asarray, arguments))

        def generate(self, *arguments):
            *rows, new, end_ids = arguments
            return super().generate(*map(np.asarray, rows), new, end_ids)

    assert by_name(evaluate(sets, OnHost(3), **how)) == expected


DECODER = models.DecoderConfig(
    vocab_size=VOCABULARY + VOCABULARY % 2,
    d_model=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    d_ff=24,
)


@pytest.mark.numeric
def test_a_decoders_scores_depend_on_no_batch_size_mesh_order_or_company(sets):
    params = jax.tree.map(lambda x: 2 * x, models.init(DECODER, 0))
    sets = [s for s in sets if s.dataset in ("phrase", "copy")]
    mesh = sharding.make_mesh({"data": 4, "tensor": 2})
    rows = sharding.batch_sharding(mesh)
    places = sharding.shardings(params, models.partition_rules(DECODER), mesh)
    layouts = {
        "one": (None, params, dict(batch_size=64), sets),
        "reversed": (None, params, dict(batch_size=8), sets[::-1]),
        "mesh": (
            mesh,
            jax.device_put(params, places),
            dict(batch_size=64, sharding=rows),
            sets,
        ),
    }
    found = {}
    for name, (over, weights, how, chosen) in layouts.items():
        bound = (
            functools.partial(call, weights) for call in models.predictor(DECODER, over)
        )
        answers = predictions(chosen, models.Predictor(*bound), **how)
        outputs = (answer.outputs for answer in answers)
        found[name] = dict(zip([s.dataset for s in chosen], outputs, strict=True))
    length = decoder_length(
        layers=2, width=16, inner=16, mlp=24, context=32, vocabulary=VOCABULARY
    )
    for one in sets:
        for other in ("reversed", "mesh"):
            ours, theirs = found["one"][one.dataset], found[other][one.dataset]
            if one.ranked:
                # A score sums its tokens' log-probabilities, which are all negative.
                atol = rounding(length, np.abs(ours).max())
                np.testing.assert_allclose(theirs, ours, rtol=0, atol=atol)
            else:
                assert theirs == ours
    assert np.ptp(found["one"]["phrase"]) > 1


def test_a_batch_that_the_mesh_does_not_divide_is_refused(sets):
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    with pytest.raises(UserError, match="a batch of 12 does not split evenly"):
        evaluation.prepare(asked(sets), batch_size=12, sharding=rows)


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(UserError, match="no datasets"):
        evaluation.prepare(asked([]))


def test_a_batch_of_less_than_nothing_is_refused(sets):
    with pytest.raises(UserError, match="batch size -1"):
        evaluation.prepare(asked(sets), batch_size=-1)


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
    ours = [s for s in evaluate(sets, model) if s.dataset == dataset]
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
