"""Prompts drawn from latent concepts: tables, Markov chains, hidden Markov models and linear regression.

A concept z ~ P_Z is drawn once per prompt; then c_i is a covariate and r_i ~ P(· | c_i, z) a response. Everything works on
K members at once: `seeds` holds one integer per member, and a member's numbers depend on its own seeds and on shapes
alone. Concepts, prompts and corruptions of the same seed are independent streams. Members with equal seeds draw equal
uniform numbers, so that arms which differ in tables, prior or corruption are paired. Tables [K, M, C, R] hold
P(r | c, z) in row [k, z, c]; a prior P_Z is [M], or [K, M] where members differ. Every function raises ValueError for
shapes that do not fit together and numbers out of range.

Source of the model: Zhang, Zhang, Yang and Wang 2023, arXiv:2305.19420, equation (4.1) and Assumption 5.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy.special import gammaincinv
from torch import Tensor

from theory.ensemble import chunks, normal, stream

CORRUPTIONS = ("correct", "random", "least likely")


def entries(device: torch.device) -> int:
    """Return how many numbers one temporary should hold at most: on a CPU it should stay in the cache."""
    return 2**19 if device.type == "cpu" else 20_000_000


def sequence_chunks(n: int, per_sequence: int, device: torch.device) -> Iterator[slice]:
    """Yield slices of n prompts, in order, for which a temporary of `per_sequence` numbers each fits in `entries`.

    One prompt at a time if even one does not fit.
    """
    return chunks(n, max(1, entries(device) // max(1, per_sequence)))


# Concepts as tables -----------------------------------------------------------------------------------------------


def concept_tables(
    seeds: Sequence[int], M: int, C: int, R: int, c0: float, alpha: float = 1.0, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Return M tables per member, [K, M, C, R]: each row is (1 − R c₀) Dirichlet(α, ..., α) + c₀.

    No response is then rarer than c₀, as Assumption 5.2 asks. Small α makes concepts easy to tell apart. The first
    tables do not depend on M.
    """
    return _floored("icl tables", seeds, (M, C, R), c0, alpha).to(device)


def markov_tables(
    seeds: Sequence[int], M: int, V: int, c0: float, alpha: float = 1.0, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Return M transition matrices per member, [K, M, V, V], drawn as the rows of `concept_tables` are."""
    return _floored("icl transitions", seeds, (M, V, V), c0, alpha).to(device)


def covariate_laws(
    seeds: Sequence[int], M: int, C: int, c0: float, alpha: float = 1.0, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Return a law of covariates for each concept, [K, M, C], drawn as the rows of `concept_tables` are."""
    return _floored("icl covariate laws", seeds, (M, C), c0, alpha).to(device)


def word_laws(laws: Tensor, length: int) -> Tensor:
    """Return the law of `length` independent tokens as one covariate, [..., C**length] from [..., C].

    Word number Σ_j x_j C^(length − 1 − j) stands for the tokens x_0 x_1 ...
    """
    if length < 1:
        raise ValueError(f"length = {length}: a covariate has at least one token")
    words = laws
    for _ in range(length - 1):
        words = (words.unsqueeze(-1) * laws.unsqueeze(-2)).flatten(-2)
    return words


def sample_pairs(
    tables: Tensor, prior: Tensor, n: int, T: int, seeds: Sequence[int], *, laws: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return n prompts of T pairs per member: concepts z [K, n], covariates c and responses r [K, n, T], all int64.

    Covariates are uniform, or follow `laws` [K, M, C] of P(c | z). The first prompts do not depend on n.
    """
    K, M, C, R = _table_shape(tables)
    rows = tables.cumsum(-1).flatten(0, 2)
    member = torch.arange(K, device=tables.device)
    z = _concepts(tables, prior, n, seeds)
    u = _uniform("icl covariates", seeds, (n, T), tables)
    if laws is None:
        c = (u * C).long()
    else:
        law = checked_laws(laws, tables).cumsum(-1)[member[:, None], z]  # [K, n, C]
        c = torch.searchsorted(law[..., :-1].contiguous(), u, right=True)
    u = _uniform("icl responses", seeds, (n, T), tables)
    index = ((member[:, None] * M + z) * C).unsqueeze(-1) + c
    r = torch.cat([_invert(u[:, part], rows[index[:, part]]) for part in sequence_chunks(n, K * T * R, u.device)], 1)
    return z, c, r


def sample_chains(tables: Tensor, prior: Tensor, n: int, T: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return n Markov chains per member: concepts z [K, n] and tokens x [K, n, T + 1], x_0 uniform.

    `tables` are transition matrices [K, M, V, V]. `chain_pairs` turns x into covariates and responses.
    """
    K, _, V, R = _table_shape(tables)
    if V != R:
        raise ValueError(f"transition matrices must be [K, M, V, V], got {list(tables.shape)}")
    rows = tables.cumsum(-1)
    member = torch.arange(K, device=tables.device)[:, None]
    z = _concepts(tables, prior, n, seeds)
    u = _uniform("icl chain", seeds, (n, T + 1), tables)
    x = torch.empty(K, n, T + 1, dtype=torch.int64, device=tables.device)
    x[..., 0] = (u[..., 0] * V).long()
    for t in range(T):
        x[..., t + 1] = _invert(u[..., t + 1], rows[member, z, x[..., t]])
    return z, x


def chain_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs of a chain x [..., T + 1]: c_i = x_{i−1} and r_i = x_i, each [..., T]."""
    return x[..., :-1], x[..., 1:]


def second_eigenvalue(tables: Tensor) -> Tensor:
    """Return |λ₂| of transition matrices [..., V, V]: the second largest modulus of an eigenvalue, 0 for V = 1."""
    if tables.shape[-1] == 1:
        return torch.zeros_like(tables[..., 0, 0])
    return torch.linalg.eigvals(tables).abs().sort(dim=-1, descending=True).values[..., 1]


def stationary_law(tables: Tensor) -> Tensor:
    """Return π with π P = π for transition matrices [..., V, V] with one recurrent class, as [..., V].

    It solves π (I − P + 𝟙𝟙ᵀ) = 𝟙ᵀ, which is not singular for such P. torch.linalg.LinAlgError where it is.
    """
    V = tables.shape[-1]
    system = torch.eye(V, dtype=tables.dtype, device=tables.device) - tables + 1
    return torch.linalg.solve(system.mT, torch.ones_like(tables[..., 0]))


def mixing_time(tables: Tensor, epsilon: float = 0.25, limit: int = 100_000) -> Tensor:
    """Return the least t with max_x TV(Pᵗ(x, ·), π) ≤ ε for transition matrices [..., V, V], as int64 [...].

    It is the mixing time of the token chain given the concept. Raises ValueError if a chain needs more than `limit`
    steps, as a periodic chain does.
    """
    pi = stationary_law(tables).unsqueeze(-2)
    power = torch.eye(tables.shape[-1], dtype=tables.dtype, device=tables.device).expand_as(tables)
    times = torch.full(tables.shape[:-2], -1, dtype=torch.int64, device=tables.device)
    for t in range(limit + 1):
        near = ((power - pi).abs().sum(-1) / 2).amax(-1) <= epsilon
        times = torch.where((times < 0) & near, t, times)
        if bool((times >= 0).all()):
            return times
        power = power @ tables
    raise ValueError(f"a chain is not within {epsilon} of its stationary law after {limit} steps: is it periodic?")


# Wrong responses --------------------------------------------------------------------------------------------------


def corrupted_laws(tables: Tensor, mode: str) -> Tensor:
    """Return the law of the responses shown, [K, M, C, R], given c and the concept behind the prompt.

    "correct" shows P(· | c, z); "random" a uniform response; "least likely" always the least likely one (the first of
    several). Raises ValueError for another mode.
    """
    if mode == "correct":
        return tables
    if mode == "random":
        return torch.full_like(tables, 1 / tables.shape[-1])
    if mode == "least likely":
        return torch.zeros_like(tables).scatter(-1, tables.argmin(-1, keepdim=True), 1.0)
    raise ValueError(f"mode = {mode!r}: choose one of {', '.join(map(repr, CORRUPTIONS))}")


def corrupt(tables: Tensor, z: Tensor, c: Tensor, r: Tensor, mode: str, seeds: Sequence[int]) -> Tensor:
    """Return the responses r′ [K, n, T] that a prompt with covariates c and responses r shows under `mode`.

    They follow `corrupted_laws` and are independent of r unless the mode is "correct", which returns r itself.
    """
    K, M, C, R = _table_shape(tables)
    if mode == "correct":
        return r
    if mode == "random":
        return (_uniform("icl corruption", seeds, tuple(c.shape[1:]), tables) * R).long()
    laws = corrupted_laws(tables, mode).argmax(-1).flatten()  # [K·M·C], the one response shown
    member = torch.arange(K, device=tables.device)
    return laws[((member[:, None] * M + z) * C).unsqueeze(-1) + c]


# Hidden Markov models ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HMM:
    """M hidden Markov models per member with S states and V tokens: the concepts of Xie et al. 2022, arXiv:2111.02080.

    start       P(h_1 = s | z), [K, M, S]
    transition  P(h_{t+1} | h_t, z), [K, M, S, S]
    emission    P(x_t = v | h_t, z), [K, M, S, V]
    """

    start: Tensor
    transition: Tensor
    emission: Tensor

    def __post_init__(self) -> None:
        K, M, S = self.start.shape
        if self.transition.shape != (K, M, S, S) or self.emission.shape[:-1] != (K, M, S):
            raise ValueError(
                f"start {list(self.start.shape)} asks for transition [{K}, {M}, {S}, {S}] and emission "
                f"[{K}, {M}, {S}, V], got {list(self.transition.shape)} and {list(self.emission.shape)}"
            )


def ginc(
    seeds: Sequence[int],
    M: int,
    slots: int = 10,
    values: int = 10,
    V: int = 50,
    *,
    temperature: float = 0.1,
    start_temperature: float = 10.0,
    stay: float = 0.9,
    device: torch.device | str = "cpu",
) -> HMM:
    """Return hidden Markov models after the GINC data set of Xie et al. 2022.

    State number value · slots + slot. A concept has its own start law, a softmax of uniform numbers over
    `start_temperature`, and its own slot transitions; value transitions and the memory of tokens are shared. Transitions
    are mixtures of as many random permutations as there are slots (or values), their weights a softmax of uniform numbers
    over `temperature`; values keep theirs with an additional probability `stay`. State (value, slot) always emits the
    token that the memory holds; slot 0 is the delimiter, token 0, other cells are uniform over tokens 1..V−1.
    """
    if min(M, slots, values) < 1 or V < 2 or not 0 <= stay <= 1:
        raise ValueError(f"M = {M}, slots = {slots}, values = {values}, V = {V}, stay = {stay} do not make a data set")
    S = slots * values
    made = []
    for seed in seeds:
        start = (_uniform("icl ginc start", [seed], (M, S)) / start_temperature).softmax(-1)[0]
        slot = torch.stack([_permutations(slots, temperature, "icl ginc slots", seed, z) for z in range(M)])
        kept = stay * torch.eye(values, dtype=torch.float64)
        value = (1 - stay) * _permutations(values, temperature, "icl ginc values", seed) + kept
        memory = torch.randint(1, V, (values, slots), generator=stream("icl ginc memory", seed))
        memory[:, 0] = 0
        transition = (value[None, :, None, :, None] * slot[:, None, :, None, :]).reshape(M, S, S)
        emission = torch.nn.functional.one_hot(memory.flatten(), V).to(torch.float64).expand(M, S, V)
        made.append((start, transition, emission))
    return HMM(*(torch.stack(parts).to(device) for parts in zip(*made, strict=True)))


def sample_hmm(hmm: HMM, prior: Tensor, n: int, T: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return n documents per member: concepts z [K, n], states h and tokens x [K, n, T]."""
    K = len(hmm.start)
    member = torch.arange(K, device=hmm.start.device)[:, None]
    z = _concepts(hmm.start, prior, n, seeds)
    start, transition, emission = hmm.start.cumsum(-1), hmm.transition.cumsum(-1), hmm.emission.cumsum(-1)
    u = _uniform("icl states", seeds, (n, T), hmm.start)
    v = _uniform("icl emissions", seeds, (n, T), hmm.start)
    h = torch.empty(K, n, T, dtype=torch.int64, device=hmm.start.device)
    x = torch.empty_like(h)
    for t in range(T):
        law = start[member, z] if t == 0 else transition[member, z, h[..., t - 1]]
        h[..., t] = _invert(u[..., t], law)
        x[..., t] = _invert(v[..., t], emission[member, z, h[..., t]])
    return z, h, x


def forward(hmm: HMM, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return by the forward algorithm what each concept says about tokens x [K, n, T].

    First log P(x_t | x_1..x_{t−1}, z), [K, n, T, M], whose cumulative sum is the log-likelihood; −∞ from the first token
    that z rules out. Second the law P(x_t = v | x_1..x_{t−1}, z), [K, n, T, M, V]; zero once z is ruled out.
    """
    n, T = x.shape[1:]
    belief = hmm.start.unsqueeze(2).expand(-1, -1, n, -1)  # P(h_t | x_1..x_{t−1}, z), [K, M, n, S]
    steps, laws = [], []
    for t in range(T):
        laws.append(belief @ hmm.emission)  # [K, M, n, V]
        seen = hmm.emission.gather(3, x[:, None, None, :, t].expand(-1, *hmm.emission.shape[1:3], -1)).mT
        joint = belief * seen  # [K, M, n, S]
        evidence = joint.sum(-1, keepdim=True)
        steps.append(evidence.squeeze(-1).log())
        belief = (joint / torch.where(evidence > 0, evidence, 1.0)) @ hmm.transition
    return torch.stack(steps, 2).permute(0, 3, 2, 1), torch.stack(laws, 2).permute(0, 3, 2, 1, 4)


# Linear regression ------------------------------------------------------------------------------------------------


def pool_tasks(seeds: Sequence[int], M: int, d: int, lam: float = 1.0, *, device: torch.device | str = "cpu") -> Tensor:
    """Return M regression tasks per member, w ~ N(0, λI), [K, M, d]: a finite pool as in Raventós et al. 2023."""
    if M < 1 or lam < 0:
        raise ValueError(f"M = {M} and lam = {lam}: a pool has at least one task and a variance λ ≥ 0")
    return lam**0.5 * torch.stack([normal((M, d), "icl pool", seed, device=device) for seed in seeds])


def linear_prompts(
    seeds: Sequence[int], n: int, T: int, d: int, lam: float, sigma2: float, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return n prompts per member of y = w·x + N(0, σ²): X [K, n, T, d], y [K, n, T], w [K, n, d].

    x ~ N(0, I) and w ~ N(0, λI), a new one for each prompt.
    """
    if lam < 0:
        raise ValueError(f"lam = {lam}: the variance of the prior must not be negative")
    w = lam**0.5 * torch.stack([normal((n, d), "icl weights", seed, device=device) for seed in seeds])
    return *_regression(seeds, w, T, sigma2), w


def pool_prompts(pool: Tensor, n: int, T: int, sigma2: float, seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return n prompts per member with tasks from a pool [K, M, d]: X [K, n, T, d], y [K, n, T], the task [K, n].

    Tasks are uniform over the pool. Covariates and noise are those of `linear_prompts` with the same seeds.
    """
    K, M, _ = pool.shape
    z = (_uniform("icl concept", seeds, (n,), pool) * M).long()
    w = pool[torch.arange(K, device=pool.device)[:, None], z]
    return *_regression(seeds, w, T, sigma2), z


# Checks and draws -------------------------------------------------------------------------------------------------


def checked_prior(prior: Tensor, K: int, M: int) -> Tensor:
    """Return a prior given as [M] or [K, M] as [K, M]. Raises ValueError if it is not a law over M concepts."""
    if prior.shape not in ((M,), (K, M)):
        raise ValueError(f"prior must be [{M}] or [{K}, {M}], got {list(prior.shape)}")
    if not bool((prior >= 0).all()) or not bool(((prior.sum(-1) - 1).abs() < 1e-9).all()):
        raise ValueError(f"prior must hold probabilities that add up to 1, got sums {prior.sum(-1).tolist()}")
    return prior.expand(K, M)


def checked_laws(laws: Tensor, tables: Tensor) -> Tensor:
    """Return laws of covariates as they are. Raises ValueError if they do not fit the tables [K, M, C, R]."""
    if laws.shape != tables.shape[:-1]:
        raise ValueError(f"laws must be [K, M, C] = {list(tables.shape[:-1])}, got {list(laws.shape)}")
    return laws


def _table_shape(tables: Tensor) -> tuple[int, int, int, int]:
    if tables.dim() != 4:
        raise ValueError(f"tables must be [K, M, C, R], got {list(tables.shape)}")
    K, M, C, R = tables.shape
    return K, M, C, R


def _uniform(name: str, seeds: Sequence[int], shape: tuple[int, ...], like: Tensor | None = None) -> Tensor:
    """Return uniform numbers in [0, 1), [K, *shape]; the first along axis 1 do not depend on its length."""
    if like is not None and like.shape[0] != len(seeds):
        raise ValueError(f"{len(seeds)} seeds for concepts of {like.shape[0]} members: give one seed each")
    draws = [torch.rand(shape, generator=stream(name, seed, shape[1:]), dtype=torch.float64) for seed in seeds]
    return torch.stack(draws).to("cpu" if like is None else like.device)


def _concepts(like: Tensor, prior: Tensor, n: int, seeds: Sequence[int]) -> Tensor:
    """Return z ~ P_Z, [K, n], for concepts in the first two axes of `like`."""
    K, M = like.shape[:2]
    return _invert(_uniform("icl concept", seeds, (n,), like), checked_prior(prior, K, M).cumsum(-1)[:, None, :])


def _invert(u: Tensor, cumulative: Tensor) -> Tensor:
    """Return the outcome of each uniform number [...] under cumulative laws [..., R]."""
    return (u.unsqueeze(-1) >= cumulative[..., :-1]).sum(-1)


def _floored(name: str, seeds: Sequence[int], shape: tuple[int, ...], c0: float, alpha: float) -> Tensor:
    """Return (1 − R c₀) Dirichlet(α) + c₀ in the last axis of [K, *shape]."""
    R = shape[-1]
    if not 0 <= c0 * R <= 1:
        raise ValueError(f"c0 = {c0} must lie between 0 and 1/R = {1 / R}: R responses share a probability of 1")
    if not alpha > 0:
        raise ValueError(f"alpha = {alpha} must be positive")
    u, v = (_uniform(f"{name} {part}", seeds, shape).clamp_min(2.0**-54) for part in ("u", "v"))
    # log of a Gamma(α) variable as log Gamma(α + 1) + log(U) / α: it does not underflow however small α is.
    log_gamma = torch.from_numpy(gammaincinv(alpha + 1, u.numpy())).log() + v.log() / alpha
    return (1 - R * c0) * log_gamma.softmax(-1) + c0


def _permutations(size: int, temperature: float, name: str, *parts: int) -> Tensor:
    """Return a random mixture of `size` permutation matrices, [size, size]."""
    draw = stream(name, size, *parts)
    weights = (torch.rand(size, generator=draw, dtype=torch.float64) / temperature).softmax(0)
    orders = torch.stack([torch.randperm(size, generator=draw) for _ in range(size)])
    return (weights[:, None, None] * torch.nn.functional.one_hot(orders, size)).sum(0)


def _regression(seeds: Sequence[int], w: Tensor, T: int, sigma2: float) -> tuple[Tensor, Tensor]:
    if sigma2 < 0:
        raise ValueError(f"sigma2 = {sigma2}: the variance of the noise must not be negative")
    n, d = w.shape[1:]
    X = torch.stack([normal((n, T, d), "icl inputs", seed, device=w.device) for seed in seeds])
    noise = torch.stack([normal((n, T), "icl noise", seed, device=w.device) for seed in seeds])
    return X, (X @ w.unsqueeze(-1)).squeeze(-1) + sigma2**0.5 * noise
