"""The model type: generation is denoising, likelihoods are the bound's, and both go through lm-eval unharmed."""

import json
import logging

import lm_eval
import pytest
import torch
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

import dlm_lens as dl
from dlm_lens.eval import DlmLens, write_task

QUIET = {"disable_tqdm": True}
TEXTS = ["def first(self):\n    return self", "import os", "class Name:\n    pass\n"]


def evaluate(model, tasks, folder=None, **options):
    manager = TaskManager(include_path=folder, include_defaults=False)
    return lm_eval.simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=0, **options)


@pytest.fixture(scope="module")
def items(tiny):
    return dl.tasks.retrieval(tiny, 6, length=128, code=0.2)


@pytest.fixture(scope="module")
def folder(items, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_task(items, folder)
    return str(folder)


class TestTasks:
    @pytest.mark.parametrize("policy", ["dense", "pulsecol", "random"])
    def test_accuracy_is_that_of_tasks(self, tiny, items, folder, policy):
        how = {} if policy == "dense" else {"sparsity": 0.6, "group_size": 8}
        model = DlmLens(tiny, policy=policy, steps=4, batch_size=4, **how)
        found = evaluate(model, ["retrieval"], folder, log_samples=True)
        share = dl.tasks.accuracy(
            tiny, items, policy=model.method.policy, steps=4, batch_size=4, progress=False
        )
        assert found["results"]["retrieval"]["exact_match,stripped"] == share
        assert (share == 0) == (policy == "random")
        assert share < 1
        told = found["config"]["dlm_lens"]
        assert told["policy"] == model.method.policy.label
        assert told["requests"] == {"generate_until": 6}
        assert sum(told["denoising_steps"].values()) == 2 * 4
        assert told["provenance"]["torch"] == torch.__version__
        json.dumps(told)

    def test_accuracy_is_that_of_compare(self, tiny, items, folder):
        table = dl.compare(
            tiny,
            "x",
            [dl.PulseCol(sparsity=0.9)],
            gen_length=4,
            tasks=items[:3],
            control=False,
            progress=False,
        )
        shares = table.set_index("policy")["accuracy"]
        for name, label in [("dense", "Dense"), ("pulsecol", "PulseCol 90%")]:
            model = DlmLens(tiny, policy=name, sparsity=None if name == "dense" else 0.9, batch_size=8)
            found = evaluate(model, ["retrieval"], folder, limit=3)
            assert found["results"]["retrieval"]["exact_match,stripped"] == shares[label]

    def test_multiple_choice_takes_the_most_probable(self, tiny, items, tmp_path):
        """By its registered name, with arguments as text."""
        choices = [[item.answer, "0000", item.answer[::-1]] for item in items[:2]]
        rows = [{"q": item.text, "choices": some} for item, some in zip(items, choices, strict=False)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": "choose",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "q",
            "doc_to_choice": "choices",
            "doc_to_target": 0,
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}, {"metric": "exact_match"}],
        }
        arguments = "pretrained=tiny,policy=dense,mc_samples=4,device=cpu"
        found = evaluate("dlm_lens", [task], model_args=arguments, batch_size=8)
        pairs = [(item.text, choice) for item, some in zip(items, choices, strict=False) for choice in some]
        nats = [p.nats for p in dl.tasks.likelihood(tiny, pairs, samples=4, progress=False)]
        right = [min(range(3), key=nats[at : at + 3].__getitem__) == 0 for at in (0, 3)]
        assert found["results"]["choose"]["acc,none"] == sum(right) / 2 > 0
        assert found["results"]["choose"]["exact_match,none"] > 0


@pytest.fixture
def warnings(monkeypatch):
    """What is warned of, as text."""
    seen: list[str] = []
    log = logging.getLogger("lm_eval.dlm_lens")
    monkeypatch.setattr(log, "warning", lambda text, *values: seen.append(text % values))
    return seen


class TestGeneration:
    def test_answers_are_what_denoising_writes_in_the_order_of_requests(self, model, requests):
        texts = model.generate_until(
            requests("generate_until", *((text, {"max_gen_toks": 8}) for text in TEXTS)), **QUIET
        )
        prompts = sorted(TEXTS, key=lambda text: -len(model.tok_encode(text)))
        out = dl.denoise(model.dlm, prompts, gen_length=8, progress=False)
        assert texts == [out.texts[prompts.index(text)] for text in TEXTS]

    def test_requests_of_other_arguments_are_other_batches(self, model, requests):
        asked = [(TEXTS[0], {"max_gen_toks": n, "until": []}) for n in (4, 8, 4)]
        found = model.generate_until(requests("generate_until", *asked), **QUIET)
        four, eight = (
            dl.denoise(model.dlm, [TEXTS[0]] * count, gen_length=n, progress=False).texts
            for n, count in ((4, 2), (8, 1))
        )
        assert found == [four[0], eight[0], four[1]]

    def test_text_ends_at_a_stop_string(self, model, requests):
        (whole,) = model.generate_until(requests("generate_until", (TEXTS[0], {"max_gen_toks": 8})), **QUIET)
        stop = whole[len(whole) // 2 :][:2]
        asked = (TEXTS[0], {"max_gen_toks": 8, "until": ["never there", stop]})
        (cut,) = model.generate_until(requests("generate_until", asked), **QUIET)
        assert cut == whole[: whole.index(stop)]

    def test_a_special_token_may_be_a_stop_string(self, model):
        special = next(iter(model.tokenizer.get_added_vocab()))
        ids = model.tok_encode("one") + model.tok_encode(special) + model.tok_encode("two")
        assert model._text(torch.tensor(ids), [special]) == "one"
        assert model._text(torch.tensor(ids[1:]), [special]) == ""

    def test_what_fills_the_last_block_is_cut_off(self, reader, requests):
        dlm = reader()
        model = DlmLens(dlm, block_length=4, gen_length=6, steps=4)
        (text,) = model.generate_until(requests("generate_until", (TEXTS[0], {"max_gen_toks": 99})), **QUIET)
        sampler = dl.LowConfidence(block_length=4)
        out = dl.denoise(dlm, TEXTS[0], gen_length=8, steps=4, sampler=sampler, progress=False)
        assert text == dlm.decode(out.tokens[:, -8:-2])[0]

    def test_what_is_drawn_is_drawn_anew_and_again_with_the_seed(self, reader, requests):
        asked = requests("generate_until", *[(TEXTS[0], {"max_gen_toks": 8, "temperature": 1.0})] * 2)
        first, again, other = (
            DlmLens(reader(), seed=seed).generate_until(asked, **QUIET) for seed in (0, 0, 7)
        )
        assert first == again != other
        assert first[0] != first[1]

    def test_a_long_prompt_loses_its_beginning(self, reader, requests, warnings):
        dlm = reader(max_length=16)
        prompt = TEXTS[0] * 3
        (text,) = DlmLens(dlm).generate_until(
            requests("generate_until", (prompt, {"max_gen_toks": 8})), **QUIET
        )
        ids = torch.tensor(dlm.tokenizer.encode(prompt))[-8:]
        assert text == dl.denoise(dlm, ids, gen_length=8, progress=False).texts[0]
        assert warnings == ["1 of 1 prompts are cut to their last 8 tokens"]
        with pytest.raises(ValueError, match="16 tokens to generate leave none of 16"):
            DlmLens(dlm, gen_length=16).generate_until(requests("generate_until", (prompt, {})), **QUIET)

    def test_everything_is_checked_before_the_first_batch(self, reader, requests, monkeypatch):
        model = DlmLens(reader(), steps=3)
        monkeypatch.setattr(dl.DLM, "logits", lambda *_, **__: pytest.fail("ran the model"))
        asked = requests("generate_until", *((TEXTS[0], {"max_gen_toks": n}) for n in (3, 64)))
        with pytest.raises(ValueError, match="steps=3 must be divisible by the number of blocks 2"):
            model.generate_until(asked, **QUIET)

    def test_autoregressive_models_write_from_left_to_right(self, reader, requests):
        dlm = reader("ar")
        (text,) = DlmLens(dlm).generate_until(
            requests("generate_until", (TEXTS[0], {"max_gen_toks": 4})), **QUIET
        )
        assert text == dl.denoise(dlm, TEXTS[0], gen_length=4, progress=False).texts[0]


class TestLikelihood:
    PAIRS = (("def first(", "self):\n"), ("import ", "os"), ("", "class Name"), ("x = ", "1"))

    @pytest.mark.parametrize("family", ["llada", "dream", "ar"])
    def test_it_is_minus_the_bound(self, reader, requests, family):
        """White space at the end of a context belongs to the continuation, as lm-eval has it."""
        dlm = reader(family)
        encode = dlm.tokenizer.encode
        prefix = [dlm.spec.eos_id] if family == "ar" else []
        pairs = []
        for context, text in self.PAIRS:
            whole = encode(context + text)
            split = len(encode(context.rstrip())) if context else 0
            pairs.append((whole[:split] if context else prefix, whole[split:]))
        expected = dl.tasks.likelihood(dlm, pairs, samples=8, progress=False)
        model = DlmLens(dlm, mc_samples=8, batch_size=3)
        found = model.loglikelihood(requests("loglikelihood", *self.PAIRS), **QUIET)
        assert [nats for nats, _ in found] == pytest.approx([-e.nats for e in expected], rel=1e-5)
        assert [right for _, right in found] == [False] * len(pairs)

    def test_autoregressive_likelihoods_are_exact(self, reader, requests):
        dlm = reader("ar")
        ids = torch.tensor(dlm.tokenizer.encode(TEXTS[0]))
        split = len(dlm.tokenizer.encode("def first("))
        log_p = dlm.logits(ids[None])[0].double().log_softmax(-1)
        expected = sum(log_p[i, ids[i]].item() for i in range(split, len(ids)))
        pair = ("def first(", TEXTS[0].removeprefix("def first("))
        ((found, _),) = DlmLens(dlm).loglikelihood(requests("loglikelihood", pair), **QUIET)
        assert found == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("family", ["llada", "ar"])
    def test_greedy_is_what_decoding_writes(self, reader, requests, family, monkeypatch):
        dlm = reader(family)
        model = DlmLens(dlm, mc_samples=2, batch_size=2)
        context = torch.tensor(model.tok_encode(TEXTS[0]))
        out = dl.denoise(dlm, context, gen_length=3, progress=False)
        written = out.tokens[0, -3:].tolist()
        other = [*written[:2], (written[2] + 1) % 4000]
        asked = [((TEXTS[0], ""), context.tolist(), ids) for ids in (written, other)]
        assert [right for _, right in model._loglikelihood_tokens(asked, **QUIET)] == [True, False]
        unchecked = DlmLens(dlm, mc_samples=2, check_greedy=False)
        assert [right for _, right in unchecked._loglikelihood_tokens(asked, **QUIET)] == [False, False]

    def test_a_long_context_loses_its_beginning(self, reader, warnings):
        dlm = reader(max_length=12)
        ids = dlm.tokenizer.encode(TEXTS[0] * 3)
        model = DlmLens(dlm)
        ((found, _),) = model._loglikelihood_tokens([(("", ""), ids, [5, 6])], **QUIET)
        (expected,) = dl.tasks.likelihood(dlm, [(ids[-10:], [5, 6])], progress=False)
        assert found == pytest.approx(-expected.nats)
        assert warnings == ["1 of 1 contexts are cut, to fit into 12 tokens"]
        with pytest.raises(ValueError, match="continuation of 13 tokens does not fit into max_length=12"):
            model._loglikelihood_tokens([(("", ""), ids, list(range(13)))], **QUIET)

    @pytest.mark.parametrize("family", ["llada", "ar"])
    def test_rolling_adds_up_windows(self, reader, requests, family):
        dlm = reader(family, max_length=8)
        found = DlmLens(dlm, mc_samples=4, batch_size=4).loglikelihood_rolling(
            requests("loglikelihood_rolling", (TEXTS[0],), (TEXTS[1],)), **QUIET
        )
        for total, text in zip(found, TEXTS, strict=False):
            ids = dlm.tokenizer.encode(text)
            assert len(ids) < 16
            if family == "ar":
                windows = get_rolling_token_windows(ids, dlm.spec.eos_id, 7, 1)
                pairs = [make_disjoint_window(window) for window in windows]
            else:
                pairs = [([], ids[:8]), (ids[-8:8], ids[8:])] if len(ids) > 8 else [([], ids)]
            expected = dl.tasks.likelihood(dlm, pairs, samples=4, progress=False)
            assert total == pytest.approx(-sum(e.nats for e in expected), rel=1e-5)


class TestModel:
    def test_chat_messages_are_written_by_the_template(self, reader):
        dlm = reader()
        model = DlmLens(dlm)
        messages = [{"role": "user", "content": "Hi"}]
        with pytest.raises(ValueError, match="has no chat template; leave out --apply_chat_template"):
            model.apply_chat_template(messages)
        template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        template += "{% if add_generation_prompt %}<a>{% endif %}"
        model.tokenizer = type(model.tokenizer)(tokenizer_object=model.tokenizer.backend_tokenizer)
        model.tokenizer.chat_template = template
        assert model.apply_chat_template(messages) == "<user>Hi<a>"
        assert model.chat_template(True) == template
        assert model.tokenizer_name == "random-llada"

    def test_loading_takes_lm_evals_arguments(self, monkeypatch):
        given = []
        monkeypatch.setattr(dl, "load", lambda name, **options: given.append(options) or dl.random_model())
        for options in (
            {"device": "cuda:0", "dtype": "auto"},
            {"device": "cuda:0", "device_map": "auto"},
            {"device": "cuda:1", "dtype": "bfloat16", "max_length": 64},
        ):
            with pytest.raises(ValueError, match="no tokenizer; tasks of lm-eval are text"):
                DlmLens("name", **options)
        first = {"device": "cuda:0"} if torch.cuda.is_available() else {}
        assert given == [
            first,
            {"device_map": "auto"},
            {"device": "cuda:1", "dtype": "bfloat16", "max_length": 64},
        ]

    def test_bad_values_are_refused(self, reader):
        for wrong, message in [
            ({"batch_size": "auto"}, "batch_size='auto' must be a number"),
            ({"batch_size": 0}, "batch_size=0"),
            ({"device": "cpu"}, "device: 'random-llada' is loaded already"),
            ({"steps": "x"}, "steps='x' must be a whole number, at least 1"),
            ({"gen_length": 0}, "gen_length=0 must be a whole number"),
            ({"polcy": "dense"}, "unknown model argument polcy: there are pretrained, policy, sparsity"),
            ({"block_length": 0}, "block_length=0"),
        ]:
            with pytest.raises(ValueError, match=message):
                DlmLens(reader(), **wrong)
