"""The table of long-tailed digits, from results that are written by hand."""

import json

SCRIPT = "longtail_table"


def write_results(script, workdir, variant, seed, top1):
    """Results in which few is a tenth of top1: split -> alpha -> percent, 0 for no effect."""
    results = {}
    for split, by_alpha in top1.items():
        predictions = {"whole": by_alpha[0.0]}
        predictions |= {f"tde_feature_{alpha:g}": by_alpha[alpha] for alpha in script.ALPHAS}
        metrics = {
            name: {"top1": x, "many": x, "medium": x, "few": x / 10} for name, x in predictions.items()
        }
        results[split] = {"average": {"metrics": metrics}}
    report = workdir / f"{variant}-{seed}" / "report"
    report.mkdir(parents=True)
    (report / "results.json").write_text(json.dumps(results))
    (report / "index.html").write_text("a page: this run is done")


def test_the_strength_is_the_best_on_validation(script, tmp_path, capsys):
    (tmp_path / "made_with.txt").write_text("")
    for variant in ("plain", "cosine", "deconfound"):
        for seed in (0, 1):
            # On val the mean over seeds is best at 0.75, on test at 1.5.
            val = {alpha: 50 + 2 * seed - abs(alpha - 0.75) for alpha in (0.0, *script.ALPHAS)}
            test = {alpha: 60 + 2 * seed + alpha for alpha in val}
            write_results(script, tmp_path, variant, seed, {"val": val, "test": test})
    assert script.main([f"--workdir={tmp_path}", "--seeds=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 5
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines[2:]}
    # Seeds' 60 and 62; their sample deviation is the root of 2.
    assert [cell.strip() for cell in cells["plain"]] == ["61.0 ± 1.4"] * 3 + ["6.1 ± 0.1"]
    assert cells["De-confound-TDE, α 0.75"][0].strip() == "61.8 ± 1.4"
    assert (tmp_path / "table.md").read_text().splitlines() == lines

    # They would be reported as those of five epochs.
    assert script.main([f"--workdir={tmp_path}", "--seeds=2", "--config.train.epochs=5"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(
        f"error: {tmp_path} was made with no flags, not with --config.train.epochs=5; remove it"
    )
    assert err.count("\n") == 1
    (tmp_path / "made_with.txt").unlink()
    assert script.main([f"--workdir={tmp_path}", "--seeds=2"]) == 1
    assert f"{tmp_path} has files, but no made_with.txt" in capsys.readouterr().err


def test_a_failed_run_ends_it(script, tmp_path, capfd):
    assert script.main([f"--workdir={tmp_path}", "--seeds=1", "--config.train.epochs=0"]) == 1
    assert "config.train.epochs is 0" in capfd.readouterr().err
    # Nothing was made, so the flags can be put right.
    script.made_with.require_same(tmp_path, ["--config.train.epochs=1"])


def test_seeds_are_at_least_one(script, capsys):
    assert script.main(["--seeds=0"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: argument --seeds")
    assert len(err.splitlines()) == 1
