"""The samplers written down a second time as plain loops over one unpadded prompt, calling the model itself.

Slow and literal on purpose: the tests compare what the package computes with these, token for token.
"""

import torch


def lively(dlm):
    """The model with weights so large that attention is peaked and predictions differ between positions."""
    with torch.no_grad():
        for name, weight in dlm.model.named_parameters():
            if weight.ndim == 2:
                weight.mul_(8 if "self_attn" in name else 4)
    return dlm


def never_masking(dlm):
    """A lively model that never predicts the mask token, so that what is decided is decided."""
    with torch.no_grad():
        lively(dlm).model.lm_head.weight[dlm.spec.mask_id] = 0
    return dlm


@torch.no_grad()
def predictions(dlm, tokens):
    """Logits [L, V] in float64 where row i predicts position i."""
    logits = dlm.model(input_ids=tokens[None]).logits[0].double()
    if dlm.spec.logit_shift or dlm.spec.causal:
        logits = torch.cat([logits[:1], logits[:-1]])
    return logits


def guided(dlm, tokens, prompt_length, scale):
    logits = predictions(dlm, tokens)
    if scale == 0:
        return logits
    without = tokens.clone()
    without[:prompt_length] = dlm.spec.mask_id
    unconditional = predictions(dlm, without)
    return unconditional + (scale + 1) * (logits - unconditional)


def fill(dlm, prompt, gen_length):
    return torch.cat([prompt, torch.full((gen_length,), dlm.spec.mask_id)])


@torch.no_grad()
def low_confidence(
    dlm,
    prompt,
    *,
    gen_length,
    steps,
    block_length,
    remasking="low_confidence",
    temperature=0.0,
    scale=0.0,
    seed=0,
):
    generator = torch.Generator().manual_seed(seed)
    tokens = fill(dlm, prompt, gen_length)
    blocks = gen_length // block_length
    for block in range(blocks):
        first = len(prompt) + block * block_length
        last = first + block_length
        per_block = steps // blocks
        masks = int((tokens[first:last] == dlm.spec.mask_id).sum())
        counts = [masks // per_block + (1 if i < masks % per_block else 0) for i in range(per_block)]
        for count in counts:
            logits = guided(dlm, tokens, len(prompt), scale)[first:last]
            proposal = noisy_argmax(logits, temperature, generator)
            if remasking == "random":
                confidence = torch.rand(1, block_length, generator=generator, dtype=torch.float64)[0]
            else:
                confidence = torch.stack(
                    [row.softmax(-1)[t] for row, t in zip(logits, proposal, strict=True)]
                )
            masked = [i for i in range(block_length) if tokens[first + i] == dlm.spec.mask_id]
            for i in sorted(masked, key=lambda i: -confidence[i])[:count]:
                tokens[first + i] = proposal[i]
    return tokens


def noisy_argmax(logits, temperature, generator):
    if temperature == 0:
        return logits.argmax(-1)
    uniform = torch.rand(1, *logits.shape, generator=generator, dtype=torch.float64)[0]
    return (logits.exp() / (-torch.log(uniform)) ** temperature).argmax(-1)


@torch.no_grad()
def threshold(dlm, prompt, *, gen_length, block_length, threshold):
    tokens = fill(dlm, prompt, gen_length)
    steps = 0
    for first in range(len(prompt), len(tokens), block_length):
        last = min(first + block_length, len(tokens))
        while any(tokens[first:last] == dlm.spec.mask_id):
            probability = predictions(dlm, tokens)[first:last].softmax(-1)
            best, proposal = probability.max(-1)
            masked = [i for i in range(last - first) if tokens[first + i] == dlm.spec.mask_id]
            chosen = [i for i in masked if best[i] > threshold] or [max(masked, key=lambda i: best[i])]
            for i in chosen:
                tokens[first + i] = proposal[i]
            steps += 1
    return tokens, steps


@torch.no_grad()
def dream(dlm, prompt, *, gen_length, steps, alg, top_p=None, top_k=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = fill(dlm, prompt, gen_length)
    times = torch.linspace(1, 1e-3, steps + 1)
    for i in range(steps):
        logits = predictions(dlm, tokens)
        masked = [p for p in range(len(prompt), len(tokens)) if tokens[p] == dlm.spec.mask_id]
        confidence, proposal = {}, {}
        for p in masked:
            row = cut(logits[p], top_p, top_k)
            ordered = row.softmax(-1).sort(descending=True)
            proposal[p] = ordered.indices[0]
            probability = ordered.values
            confidence[p] = {
                "maskgit_plus": lambda q: q[0],
                "topk_margin": lambda q: q[0] - q[1],
                "entropy": lambda q: sum(x * x.log() for x in q if x > 0),
                "origin": lambda q: None,
            }[alg](probability)
        share = 1 - times[i + 1] / times[i]
        if alg == "origin":
            uniform = (
                None
                if i == steps - 1
                else torch.rand(1, gen_length, generator=generator, dtype=torch.float64)[0]
            )
            chosen = [p for p in masked if uniform is None or uniform[p - len(prompt)] < share]
        else:
            if i < steps - 1:
                torch.rand(1, gen_length, generator=generator)
            count = len(masked) if i == steps - 1 else int(torch.tensor(float(len(masked))) * share)
            chosen = sorted(masked, key=lambda p: -confidence[p])[:count]
        for p in chosen:
            tokens[p] = proposal[p]
    return tokens


def cut(row, top_p, top_k):
    """Logits outside the nucleus, or below the top_k best, set to minus infinity."""
    keep, mass = set(), 0.0
    probability = row.softmax(-1)
    for token in row.argsort(descending=True).tolist():
        if top_p is not None and mass > top_p:
            break
        keep.add(token)
        mass += float(probability[token])
    if top_k is not None:
        keep &= set(row.topk(top_k).indices.tolist())
    out = torch.full_like(row, -torch.inf)
    out[list(keep)] = row[list(keep)]
    return out


@torch.no_grad()
def left_to_right(dlm, prompt, *, gen_length):
    tokens = prompt.clone()
    for _ in range(gen_length):
        tokens = torch.cat([tokens, dlm.model(input_ids=tokens[None]).logits[0, -1].argmax()[None]])
    return tokens
