"""Dense attention, by the fastest backend or by one asked for by name."""

import pytest
import torch
from torch.nn.attention import SDPBackend

import dlm_lens as dl
from dlm_lens import attention
from dlm_lens.attention import dense_attention

PROMPT = torch.arange(1, 13)
RUN = {"gen_length": 8, "steps": 4, "progress": False}


def test_a_backend_asked_for_gives_the_same_text(random_dlm):
    batch = [PROMPT, PROMPT[:7]]  # with padding
    fastest, asked = (dl.denoise(random_dlm, batch, policy=p, **RUN) for p in (dl.Dense(), dl.Dense("math")))
    assert torch.equal(fastest.tokens, asked.tokens)
    assert (asked.timings["kind"] == "dense").all()


@pytest.mark.parametrize("start", [None, torch.tensor([0, 3])])
def test_no_other_backend_is_entered(monkeypatch, start):
    entered = []
    kernel = attention.sdpa_kernel

    def spy(backends, **options):
        entered.append(backends)
        return kernel(backends, **options)

    monkeypatch.setattr(attention, "sdpa_kernel", spy)
    q = torch.randn(2, 4, 10, 8)
    asked = dense_attention(q, q, q, start=start, backend=SDPBackend.MATH)
    assert set(entered) == {SDPBackend.MATH}
    torch.testing.assert_close(asked, dense_attention(q, q, q, start=start))


def test_what_the_backend_cannot_do_is_not_done_by_another():
    q = torch.randn(1, 2, 8, 16)
    with pytest.raises(RuntimeError):
        dense_attention(q, q, q, backend=SDPBackend.CUDNN_ATTENTION)


def test_labels_name_the_backend():
    labels = [dl.Dense(name).label for name in (None, "flash", "cudnn", "efficient", "math")]
    assert labels == [
        "Dense",
        "Dense (FlashAttention-2)",
        "Dense (cuDNN)",
        "Dense (memory-efficient)",
        "Dense (math)",
    ]


def test_the_plain_one_is_written_plainly():
    assert [repr(policy) for policy in (dl.Dense(), dl.Dense("flash"))] == [
        "Dense()",
        "Dense(backend='flash')",
    ]


def test_unknown_backends_list_the_known_ones():
    with pytest.raises(ValueError, match=r"backend='fa2' is unknown.*'cudnn', 'flash', 'efficient', 'math'"):
        dl.Dense("fa2")


@pytest.mark.parametrize("backend", ["flash", "cudnn", "efficient"])
def test_backends_of_a_gpu_are_refused_on_a_cpu_before_the_first_step(random_dlm, monkeypatch, backend):
    monkeypatch.setattr(dl.DLM, "logits", lambda *_, **__: pytest.fail("ran the model"))
    dlm = random_dlm if random_dlm.device.type == "cpu" else dl.random_model(device="cpu")
    with pytest.raises(ValueError, match=f"backend='{backend}' needs a CUDA device.*cpu"):
        dl.denoise(dlm, PROMPT, policy=dl.Dense(backend), **RUN)


@pytest.mark.gpu
def test_flash_attention_computes_what_the_fastest_does_and_refuses_float32():
    dlm = dl.random_model(hidden=256, heads=2, device="cuda", dtype=torch.bfloat16)
    flash, fastest = (dl.denoise(dlm, PROMPT, policy=p, **RUN) for p in (dl.Dense("flash"), dl.Dense()))
    assert (flash.tokens == fastest.tokens).double().mean() > 0.8
    single = dl.random_model(hidden=256, heads=2, device="cuda")
    with pytest.raises(ValueError, match=r"'flash' cannot attend.*float32"):
        dl.denoise(single, PROMPT, policy=dl.Dense("flash"), **RUN)
