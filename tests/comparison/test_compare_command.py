"""`velodrome compare` from the command line."""

import json
import subprocess
import sys
import time

import pytest
from run_folders import write_run, write_variants

from velodrome import cli


@pytest.fixture
def runs(tmp_path):
    return write_variants(tmp_path / "runs", cutout8=[[1, 2], [1]], cutout16=[[1, 2, 3, 4], [3, 4]])


def test_the_table_goes_to_stdout(runs, capsys):
    assert cli.main(["compare", str(runs)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("4 runs in 2 variants")
    assert printed.err == ""


def test_json_csv_and_page(runs, tmp_path, capsys):
    table, page = tmp_path / "a.csv", tmp_path / "a.html"
    words = ["compare", str(runs), "--baseline", "cutout=8", "--csv", str(table), "--output", str(page)]
    assert cli.main([*words, "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert json.loads(printed)["differing"] == ["cutout"]
    assert table.read_text().count("\n") == 5
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_done_in_part(runs, capsys):
    (runs / "cutout8-0" / "result.json").unlink()
    assert cli.main(["compare", str(runs)]) == 1
    printed = capsys.readouterr()
    assert "3 runs in 2 variants" in printed.out
    assert "cutout8-0 is not finished" in printed.out
    assert printed.err.startswith("velodrome: 1 of 4 runs is left out: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        ([], "RUN"),
        (["RUNS", "--baseline", "cutout=9"], "none of the variants"),
        (["RUNS", "--output", "no/where.html"], "--output no/where.html lies in no, which is not a folder"),
        (["RUNS", "--csv", "."], "--csv . is a folder"),
        (["RUNS", "--acros-data"], "Did you mean --across-data?"),
    ],
)
def test_bad_input(runs, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["compare", *(str(runs) if word == "RUNS" else word for word in words)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_other_data(runs, capsys):
    write_run(runs / "other", data="cifar10")
    assert cli.main(["compare", str(runs)]) == 2
    assert "--across-data" in capsys.readouterr().err
    assert cli.main(["compare", str(runs), "--across-data"]) == 0


def test_torch_is_never_imported(runs, tmp_path):
    code = (
        "import sys; from velodrome import cli\n"
        "from velodrome.comparison.since_last import change_since_last\n"
        f"code = cli.main(['compare', {str(runs)!r}, '--json', '--output', {str(tmp_path / 'a.html')!r}])\n"
        f"change_since_last({str(runs / 'cutout8-0')!r})\n"
        "sys.exit(code or 10 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_two_hundred_folders_are_compared_in_time(tmp_path):
    """A thousand, with ten thousand test images each: benchmarks/compare_speed.py."""
    for number in range(200):
        write_run(
            tmp_path / f"run-{number}",
            seed=number % 20,
            cutout=number // 20,
            images=300,
            wrong=range(number % 7),
        )
    from velodrome.comparison.comparing import compare

    began_s = time.perf_counter()
    found = compare(tmp_path)
    json.dumps(found.to_dict())
    assert len(str(found)) > 1000
    assert (len(found.runs), len(found.variants)) == (200, 10)
    assert time.perf_counter() - began_s < 8  # generous: about 0.5 s
