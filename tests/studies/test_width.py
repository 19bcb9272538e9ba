"""The width study: its specs, its trials in one process, and its claims judged on planted laws."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from assay import AssayError, verdict
from assay.plan import cells, plan
from assay.results import Progress, Tables, judge_claim
from studies.width import study
from studies.width.claims import AGREES
from studies.width.frames import effect, fastest, side, slopes
from studies.width.parametrizations import CONTROLS, FAST_SP, HIDDENS, NAMED, PLANE, READOUTS, label, predicted, spec_of
from studies.width.trials import LINEAR_NETWORK, VARIANTS, related_pair
from theory.abc.spec import QUANTITIES

WIDTHS = (128, 256, 512, 1024)
SEEDS = range(16)
COMPLETE = {trial.name: Progress(1, 1, 0) for trial in study.trials}


def test_named_points_of_the_plane_are_the_parametrizations_they_should_be():
    for depth in (1, 2, 3):
        plane = spec_of("plane:1,0", depth)
        assert plane.init_exponents() == spec_of("mup", depth).init_exponents()
        assert plane.rate_exponents() == spec_of("mup", depth).rate_exponents()
        assert spec_of("plane:1/2,1/2", depth).r_layers() == spec_of("ntp", depth).r_layers()
        assert spec_of("plane:3/4,1/4", depth).r_layers() == spec_of("up:1/4", depth).r_layers()


def test_plane_has_all_three_regimes_and_its_edge_is_where_the_figure_draws_it():
    for readout in READOUTS:
        for hidden in HIDDENS:
            spec = spec_of(f"plane:{readout},{hidden}", 2)
            edge = max(0, 1 - spec.init_exponents()[-1])
            rho = spec.a[1]
            assert spec.stable == (rho >= edge)
            assert (spec.regime() == "feature") == (spec.stable and rho == 0)
    assert {spec_of(name, 2).regime() for name in PLANE} == {"unstable", "feature", "kernel"}


def test_slower_learning_rate_makes_a_parametrization_trivial():
    for name in ("ntp+c:1/2", "mup+c:1/2"):
        assert spec_of(name, 2).regime() == "trivial"
        assert predicted("df", name, 2, 3, 1) == -0.5


def test_labels_are_distinct():
    labels = [label(name) for name in (*NAMED, *PLANE)]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("variant", VARIANTS)
def test_related_pairs_are_related_exactly_when_they_should_be(variant):
    for seed in range(20):
        one, other = related_pair(variant, "mup", 1, seed)
        same = one.init_exponents() == other.init_exponents() and one.rate_exponents() == other.rate_exponents()
        assert same == (variant in ("global", "per layer", "mfp is mup"))
        assert variant.endswith("is mup") or one.a != other.a


def planted(noise: float = 0.02) -> dict[str, pd.DataFrame]:
    """Tables in which every theorem holds: power laws with theory's exponents and a little noise per seed."""
    dice = np.random.default_rng(0)
    rows = []
    for network, depths in (("tanh", (1, 2)), (LINEAR_NETWORK, (1,))):
        for depth in depths:
            for name in (*NAMED, *PLANE) if network == "tanh" else ("ntp", "mup"):
                if ((name == "mfp" or name not in PLANE) and (depth == 1 or name != "mfp")) or (
                    depth == 2 and name in PLANE
                ):
                    rows += planted_sizes(dice, noise, network, depth, name)
    scaling = pd.DataFrame(
        rows, columns=["network", "depth", "parametrization", "quantity", "layer", "t", "width", "seed", "value"]
    )
    symmetry = [
        (depth, variant, seed, 1e-14 if variant in ("global", "per layer", "mfp is mup") else 0.3)
        for depth in (1, 2) for variant in VARIANTS for seed in SEEDS
    ]  # fmt: skip
    exponents = {"sp:0": -1.0, "ntp": 0.0, "mup": 0.0}
    rates = [(name, n, seed, 9.0 * n**exponent * np.exp(noise * dice.normal()))
             for name, exponent in exponents.items() for n in WIDTHS for seed in SEEDS]  # fmt: skip
    transfer = [
        (loss, name, n, seed, log2_eta, 0.1 * np.exp((log2_eta - 6 - exponents[name] * np.log2(n) + dice.normal() * noise) ** 2))
        for loss in ("mse", "xent") for name in exponents for n in WIDTHS for seed in SEEDS for log2_eta in range(-8, 10)
    ]  # fmt: skip
    kernel = [
        (quantity, name, n, seed, np.exp(noise * dice.normal()) * (n**-0.5 if (name, quantity) == ("ntp", "ntk") else 0.5))
        for quantity in ("ntk", "nngp") for name in ("ntp", "mup") for n in WIDTHS for seed in SEEDS
    ]  # fmt: skip
    return {
        "scaling": scaling,
        "symmetry": pd.DataFrame(symmetry, columns=["depth", "variant", "seed", "difference"]),
        "stability": pd.DataFrame(rates, columns=["parametrization", "width", "seed", "max_eta"]),
        "transfer": pd.DataFrame(
            transfer, columns=["loss_function", "parametrization", "width", "seed", "log2_eta", "loss"]
        ),
        "kernel": pd.DataFrame(kernel, columns=["quantity", "parametrization", "width", "seed", "value"]),
    }


def planted_sizes(dice, noise, network, depth, name):
    spec = spec_of(name, depth)
    for quantity in QUANTITIES:
        hidden = quantity in ("h0", "dh", "dx", "dWx", "feature_kernel")
        for layer in range(1, depth + 1) if hidden else (depth + 1,):
            for t in (1, 2, 4):
                try:
                    exponent = predicted(quantity, name, depth, layer, t)
                except ValueError:  # unstable: it grows
                    exponent = 0.4
                if network == LINEAR_NETWORK:  # both at once: features move and the linearisation is exact
                    exponent = {"feature_kernel": 0.0, "kernel_residual": -4.0}.get(quantity, exponent)
                for n in WIDTHS:
                    value = 0.5 * float(n) ** exponent
                    for seed in SEEDS:
                        yield network, depth, name, quantity, layer, t, n, seed, value * np.exp(noise * dice.normal())
    assert depth == spec.L


@pytest.fixture(scope="module")
def tables():
    frames = planted()
    return Tables(study, lambda name: frames[name])


@pytest.mark.parametrize("claim", study.claims, ids=lambda claim: claim.id)
def test_claims_hold_where_the_theorems_do_and_their_controls_fail(claim, tables):
    found = judge_claim(claim, tables, COMPLETE)
    assert found.outcome == ("void" if claim.expect == "void" else "supported"), found.reason
    assert [control.assessment.outcome for control in found.controls] == ["refuted"] * len(claim.controls)


def test_a_network_that_diverged_counts_as_unstable(tables):
    frame = tables["scaling"]
    gone = (frame["parametrization"] == "ntp") & (frame["quantity"] == "df") & (frame["width"] == 1024)
    frame.loc[gone & (frame["seed"] == 3), "value"] = np.inf
    chosen = fastest(Tables(study, lambda name: frame), ("ntp", "mup"))
    assert set(chosen[chosen["parametrization"] == "ntp"]["quantity"]) == {"df"}


def test_the_effect_gate_looks_at_every_network_at_its_own_largest_width(tables):
    frame = tables["scaling"]
    frame = frame[(frame["width"] <= 512) | ~frame["parametrization"].isin(PLANE)]
    tiny = frame["parametrization"] == "plane:1,0"
    frame.loc[tiny & (frame["quantity"] == "feature_kernel"), "value"] = 0.01
    assert "plane:1,0" in set(effect(Tables(study, lambda name: frame))["parametrization"])
    claim = study.claim("ABC-5")
    assert judge_claim(claim, Tables(study, lambda name: frame), COMPLETE).outcome == "void"


def test_cluster_scale_reads_cifar10_from_the_users_disk(tmp_path, monkeypatch):
    from studies.width.inputs import batches_per_member, dataset

    dataset.cache_clear()
    monkeypatch.delenv("ASSAY_CIFAR10", raising=False)
    with pytest.raises(AssayError, match="set ASSAY_CIFAR10"):
        dataset("cifar10")
    dice = np.random.default_rng(0)
    for number in range(1, 6):
        records = dice.integers(0, 256, (12, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(12) % 10
        (tmp_path / f"data_batch_{number}.bin").write_bytes(records.tobytes())
    monkeypatch.setenv("ASSAY_CIFAR10", str(tmp_path))
    x, y, probes = batches_per_member("cifar10", [0, 1], batch=16, steps=3)
    assert (x.shape, y.shape, probes.shape) == ((2, 3, 16, 3072), (2, 3, 16, 10), (2, 24, 3072))
    assert float(dataset("cifar10")[0].square().sum(1).mean()) == pytest.approx(1)
    dataset.cache_clear()


@pytest.mark.parametrize(
    "claim", [c for c in study.claims if c.id in ("ABC-3", "ABC-4", "ABC-8", "ABC-10", "ABC-17")], ids=lambda c: c.id
)
def test_a_wrong_exponent_refutes_the_claim(claim, tables):
    bent = tables["scaling"]
    bent["value"] *= np.where(bent["parametrization"] == "mup", bent["width"] ** 0.3, 1.0)
    found = judge_claim(claim, Tables(study, lambda name: bent), COMPLETE)
    assert found.assessment.outcome == "refuted"


def test_side_measures_the_distance_to_the_wrong_side_of_the_line():
    x = np.array(WIDTHS, dtype=float)
    rows = [(1, name, seed, n, n**slope) for name, slope in (("mup", 0.0), ("ntp", -1.0)) for seed in SEEDS for n in x]
    frame = pd.DataFrame(rows, columns=["depth", "parametrization", "seed", "x", "value"])
    judged = slopes(side(frame, lambda name, depth: name == "mup", -0.1)).groupby("parametrization")["slope"].mean()
    assert judged["mup"] == pytest.approx(-0.1)
    assert judged["ntp"] == pytest.approx(-0.9)
    assert (
        verdict.assess(AGREES, side(frame, lambda *_: True, -0.1), ("seed",), ("parametrization",)).outcome == "refuted"
    )


def small(trial: str, **fixed):
    """The pack of a trial at smoke scale whose shared factors are the given ones, cut to a few cells."""
    for pack in plan(study, "smoke"):
        first = pack.cells[0].factors
        if pack.trial == trial and all(first[key] == value for key, value in fixed.items()):
            return pack
    raise LookupError(trial)


@pytest.mark.parametrize(
    ("trial", "fixed"),
    [
        ("scaling", {"network": "tanh", "depth": 2, "width": 64}),
        ("scaling", {"network": LINEAR_NETWORK, "width": 64}),
        ("symmetry", {"depth": 2}),
        ("stability", {"width": 64}),
        ("transfer", {"width": 64, "loss_function": "xent"}),
        ("kernel_stability", {}),
        ("kernel", {"width": 64}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_cell_gives_the_same_rows_alone_and_in_its_pack(trial, fixed):
    pack = small(trial, **fixed)
    together = study.run_pack(pack)
    for alone in (pack.split()[0], pack.split()[len(pack) // 2]):
        for name, frame in study.run_pack(alone).items():
            there = together[name][together[name]["cell"] == alone.cells[0].id].reset_index(drop=True)
            exact = trial in ("scaling", "symmetry", "kernel")  # double precision
            pd.testing.assert_frame_equal(frame, there, rtol=1e-10 if exact else 1e-3, atol=1e-12)


def test_small_learning_rate_makes_mup_look_like_a_kernel_method():
    """A documented trap: at η = 1 and one step the Θ(1) change of μP hides below its n^(-1/2) fluctuation."""
    from studies.width.inputs import batches_per_member
    from theory.abc.coordinates import coordinate_check

    def slope(eta: float, t: int) -> float:
        sizes = []
        for n in (128, 512):
            x, y, probes = batches_per_member("digits", list(range(8)), batch=16, steps=4, targets="centred")
            found = coordinate_check([spec_of("mup", 1)] * 8, list(range(8)), n, "tanh", "linear", eta, x, y, probes,
                                     record=(t,), quantities=("feature_kernel",))  # fmt: skip
            sizes.append(np.exp(np.log(found["feature_kernel"]).mean()))
        return float(np.log(sizes[1] / sizes[0]) / np.log(4))

    assert slope(1.0, 1) < -0.25
    assert slope(8.0, 4) > -0.1


def test_every_scale_can_be_planned_and_every_name_is_used():
    for scale in ("smoke", "laptop", "cluster"):
        assert plan(study, scale)
    names = {cell.factors["parametrization"] for cell in cells(study, study.trial("scaling"), "laptop")}
    assert names == {*NAMED, *PLANE}
    assert {*FAST_SP, *CONTROLS} <= names
