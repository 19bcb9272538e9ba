"""Prompts with wrong responses: what is shown, what is recorded, and where the bound of Proposition 6.3 is judged."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from assay import Paper, Study
from assay.plan import plan
from assay.results import Tables
from studies.icl.exact_frames import bounded_error
from studies.icl.label_claims import RESPONSES
from studies.icl.labels import CONCEPTS, LABEL_C0, LABEL_TRIALS, LAW_ALPHA, WORDS, shown_laws
from theory.icl import bayes, tasks

study = Study("icl", "labels", "wrong responses", (Paper("a", "b", ("c",), 2023),), "1", LABEL_TRIALS, RESPONSES)


def bounded_rows(free: float) -> pd.DataFrame:
    a, unit = 1.0, math.log(1 / LABEL_C0)
    rows = [
        {"inputs": "informative", "tokens": 4, "labels": "random", "t": t, "tv": 0.1, "free": free, "divergence": 2 * unit + more}
        for t in (1, 17) for more in (a, -a)
    ]  # fmt: skip
    return bounded_error()(Tables(study, lambda name: pd.DataFrame(rows)))


def test_the_bound_under_wrong_labels_counts_examples_before_the_response():
    frame = bounded_rows(free=10.0)
    assert frame["t"].tolist() == [1, 17]
    expected = [CONCEPTS - 1, (CONCEPTS - 1) * math.exp(-4 / (2 * 5 * math.log(1 / LABEL_C0)))]
    np.testing.assert_allclose(frame["limit"], expected, rtol=1e-12)


def test_the_bound_is_not_judged_where_a_predictor_without_context_keeps_it():
    limit = (CONCEPTS - 1) * math.exp(-4 / (2 * 5 * math.log(1 / LABEL_C0)))
    assert bounded_rows(free=1.001 * limit)["t"].tolist() == [17]
    assert not len(bounded_rows(free=0.999 * limit))


@pytest.mark.parametrize("tokens", [1, 2])
def test_the_rival_is_shown_what_speaks_most_for_it(tokens):
    tables = tasks.concept_tables([0, 1], CONCEPTS, WORDS**tokens, 4, LABEL_C0)
    laws = tasks.word_laws(tasks.covariate_laws([0, 1], CONCEPTS, WORDS, LABEL_C0), tokens)
    shown, far = shown_laws(tables, laws, "rival"), bayes.pair_divergence(tables, laws=laws)
    for k in range(2):
        for z in range(CONCEPTS):
            rival = min((other for other in range(CONCEPTS) if other != z), key=lambda other: float(far[k, z, other]))
            for c in range(WORDS**tokens):
                gained = [float(tables[k, rival, c, r] / tables[k, z, c, r]) for r in range(4)]
                assert shown[k, z, c].tolist() == [float(r == int(np.argmax(gained))) for r in range(4)]
    assert torch.equal(shown_laws(tables, None, "random"), tasks.corrupted_laws(tables, "random"))


@pytest.mark.parametrize("inputs", ["informative", "uninformative"])
def test_what_is_recorded_of_wrong_labels_is_averaging_over_whole_prompts(inputs):
    """Against `bayes.bma`, which predicts at every position, and a sum over all covariates."""
    seed, n, T, M = 1, 10, 64, CONCEPTS
    tables = tasks.concept_tables([seed], M, WORDS, 4, LABEL_C0)
    laws = tasks.covariate_laws([seed], M, WORDS, LABEL_C0, LAW_ALPHA) if inputs == "informative" else None
    wanted = {"inputs": inputs, "tokens": 1, "labels": "least likely"}
    pack = next(p for p in plan(study, "smoke") if p.trial == "labels" and all(p[x] == wanted[x] for x in wanted))
    frame = study.run_pack(pack)["labels"]
    frame = frame[frame["seed"] == seed]
    prior, at = torch.full((M,), 1 / M, dtype=torch.float64), [2**i - 1 for i in range(7)]
    for concept in range(M):
        z, c, r = tasks.sample_pairs(tables, torch.eye(M, dtype=torch.float64)[concept], n, T, [seed], laws=laws)
        r = tasks.corrupt(tables, z, c, r, "least likely", [seed])
        true = bayes.truth(tables, z, c)
        found = {
            "kl": bayes.kl(true, bayes.bma(tables, prior, c, r, laws=laws)),
            "tv": bayes.tv(true, bayes.bma(tables, prior, c, r, laws=laws)),
            "kl_responses": bayes.kl(true, bayes.bma(tables, prior, c, r)),
            "tv_forgetful": bayes.tv(true, bayes.prior_average(tables, prior, c, laws=laws)),
            "posterior": bayes.log_posterior_at(tables, prior, c, r, z, laws=laws).exp()[..., 1:],
        }
        rows = frame[frame["concept"] == concept].sort_values("t")
        for name, values in found.items():
            np.testing.assert_allclose(rows[name], values[0].mean(0)[at], rtol=1e-9, atol=1e-12)
        free = 0.0
        for word in range(WORDS):
            law = np.full(M, 1 / WORDS) if laws is None else laws[0, :, word].numpy()
            average = law / law.sum() @ tables[0, :, word].numpy()
            free += law[concept] * np.abs(average - tables[0, concept, word].numpy()).sum() / 2
        np.testing.assert_allclose(rows["free"], free, rtol=1e-12)
