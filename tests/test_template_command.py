"""`shop template`: what is behind, all updates in one go, and what stops them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import copier
import pytest
import versions
from conftest import Template, commit_all, git, tree
from test_services import run
from versions import Versions

ANSWERS = ".copier-answers.yml"
SLICES = "src/shop/slices"
PAYMENTS = f"{SLICES}/payments"
ORDERS = f"{SLICES}/orders"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """Three versions, each of which has a file that the next one has no more."""
    found = versions.thin(tmp_path_factory.mktemp("template"))
    for number, tag in enumerate(("1.0.0", "1.1.0", "1.2.0rc1"), 1):
        found.change_everything(number)
        found.release(tag)
    return found


@pytest.fixture(scope="module")
def first(released: Versions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(released.at("1.0.0"), tmp_path_factory.mktemp("first") / "shop")


@pytest.fixture
def shop(first: Path, tmp_path: Path) -> Path:
    """A service with two slices at 1.0.0, committed."""
    return shutil.copytree(first, tmp_path / "shop")


@pytest.fixture(autouse=True)
def copier_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


def make(template: Template, shop: Path) -> Path:
    template.copy(shop)
    template.copy(shop / PAYMENTS, fields="amount:int")
    template.copy(shop / ORDERS, listens_to="payments.PaymentCreated:start_order")
    commit_all(shop)
    return shop


def command(shop: Path, *arguments: str, fails: bool = False) -> str:
    return run(shop, "shop", "template", *arguments, fails=fails)


def refused(shop: Path, *arguments: str) -> str:
    """What an update is refused with; the tree is as it was."""
    before = tree(shop), git(shop, "status", "--porcelain")
    printed = command(shop, *(arguments or ["update"]), fails=True)
    assert (tree(shop), git(shop, "status", "--porcelain")) == before
    assert "Traceback" not in printed
    return printed


def edit(file: Path, text: str) -> None:
    """Write before the first line, where each version of the template writes as well."""
    file.write_text(text + file.read_text())


def versions_of(shop: Path) -> set[str]:
    return {
        line.removeprefix("_commit: ").strip("'")  # A hash may be all digits.
        for file in shop.rglob(ANSWERS)
        for line in file.read_text().splitlines()
        if line.startswith("_commit: ")
    }


class TestStatus:
    def test_shows_each_part(self, shop: Path) -> None:
        (shop / SLICES / "ours").mkdir()
        (shop / SLICES / "ours/__init__.py").write_text('NAME = "ours"\n')
        lines = [line.split() for line in command(shop, "status").splitlines()]
        assert lines == [
            ["part", "at", "newest"],
            ["service", "1.0.0", "1.1.0"],
            ["orders", "1.0.0", "1.1.0"],
            ["payments", "1.0.0", "1.1.0"],
            ["ours", "not", "from", "the", "template"],
        ]

    def test_with_prereleases(self, shop: Path) -> None:
        assert "service   1.0.0  1.2.0rc1" in command(shop, "status", "--prereleases")

    def test_warns_of_another_major_version(
        self, released: Versions, shop: Path, tmp_path: Path
    ) -> None:
        found = moved(released, tmp_path, shop)
        found.release_next(4).update(shop / PAYMENTS)
        printed = command(shop, "status")
        assert "warning: payments is at 4.0.0 and the service at 1.0.0: only within one" in printed
        assert "warning: orders" not in printed


def moved(released: Versions, folder: Path, shop: Path) -> Versions:
    """A copy of the template's repository, which the service follows from now on."""
    found = Versions(shutil.copytree(released.path, folder / "template"))
    for file in shop.rglob(ANSWERS):
        file.write_text(file.read_text().replace(str(released.path), str(found.path)))
    commit_all(shop)
    return found


class TestUpdate:
    def test_all_in_one_go(self, released: Versions, shop: Path, tmp_path: Path) -> None:
        """What one part's update has removed does not come back with the next, either."""
        printed = command(shop, "update")
        assert not list(shop.rglob("version_1.py"))
        assert generated(shop) == generated(make(released.at("1.1.0"), tmp_path / "fresh/shop"))
        assert [line for line in printed.splitlines() if line.startswith("Updating")] == [
            "Updating service …",
            "Updating orders …",
            "Updating payments …",
        ]
        assert "3. uv run shop db revision orders -m 'Update orders'" in printed
        # All is staged, nothing committed.
        assert git(shop, "diff", "--name-only") == ""
        assert git(shop, "rev-list", "--count", "HEAD") == "1"
        assert "Nothing to update: all is at the newest version." in command(shop, "update")

    @pytest.mark.parametrize(
        "options", [("--to", "1.2.0rc1"), ("--prereleases",)], ids=["to", "prereleases"]
    )
    def test_to_a_version(self, shop: Path, options: tuple[str, ...]) -> None:
        command(shop, "update", "payments", *options)
        assert "_commit: 1.2.0rc1" in (shop / PAYMENTS / ANSWERS).read_text()
        assert "Nothing to update" in command(shop, "update", "payments", *options)

    def test_of_some_slices(self, shop: Path) -> None:
        command(shop, "update", "payments")
        assert "_commit: 1.1.0" in (shop / PAYMENTS / ANSWERS).read_text()
        assert "_commit: 1.0.0" in (shop / ANSWERS).read_text()
        assert "_commit: 1.0.0" in (shop / ORDERS / ANSWERS).read_text()

    def test_whatever_git_is_told_to_show(self, shop: Path) -> None:
        git(shop, "config", "status.branch", "true")
        printed = command(shop, "update")
        assert "4. uv run shop db revision payments" in printed
        assert versions_of(shop) == {"1.1.0"}

    def test_from_a_folder_below(self, shop: Path) -> None:
        subprocess.run(
            [sys.executable, "-m", "shop", "template", "update", "payments"],
            cwd=shop / ORDERS,
            env={**os.environ, "PYTHONPATH": str(shop / "src")},
            check=True,
            capture_output=True,
        )
        assert "_commit: 1.1.0" in (shop / PAYMENTS / ANSWERS).read_text()

    def test_by_uvx_where_copier_is_not_installed(
        self, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        programs = tmp_path / "programs"
        programs.mkdir()
        for name in ("git", "sed", "sh", "uname", "basename", "dirname", "cat"):
            (programs / name).symlink_to(shutil.which(name) or "")
        monkeypatch.setenv("PATH", str(programs))
        printed = refused(shop)
        assert "Neither copier nor uvx is on PATH" in printed
        uvx = programs / "uvx"
        uvx.write_text(f'#!/bin/sh\nshift; exec {sys.executable} -m copier "$@"\n')
        uvx.chmod(0o755)
        command(shop, "update", "payments")
        assert "_commit: 1.1.0" in (shop / PAYMENTS / ANSWERS).read_text()

    def test_of_new_questions(self, released: Versions, shop: Path, tmp_path: Path) -> None:
        found = moved(released, tmp_path, shop)
        with (found.path / "copier.yml").open("a") as questions:
            questions.write("\ncolour:\n  type: str\n  help: Which?\n  default: blue\n")
        found.release("1.3.0")
        command(shop, "update", "payments", "--defaults")
        assert "colour: blue" in (shop / PAYMENTS / ANSWERS).read_text()

    def test_tells_which_files_the_template_has_removed(self, shop: Path) -> None:
        """And of which the user had changed, in a commit of its own."""
        edit(shop / ORDERS / "version_1.py", "# Ours.\n")
        commit_all(shop)
        printed = command(shop, "update")
        assert [line for line in printed.splitlines() if "version_1.py" in line] == [
            "  src/shop/base/version_1.py",
            f"  {ORDERS}/version_1.py   # changed since the last update",
            f"  {PAYMENTS}/version_1.py",
        ]
        commit_all(shop)
        (shop / "src/shop/__init__.py").unlink()
        commit_all(shop)
        assert "removed" not in command(shop, "update")

    def test_an_edit_stays_where_it_is_among_lines_alike(
        self, released: Versions, shop: Path, tmp_path: Path
    ) -> None:
        """The template puts a block before those that were there, and they are all alike."""
        found = moved(released, tmp_path, shop)
        steps = found.path / versions.SLICE / "steps.txt"
        block = "begin\none\ntwo\nthree\nfour\nend\n"
        edited_block = block.replace("two\n", "two\nours\n")
        steps.write_text(block * 3)
        found.release("1.3.0")
        command(shop, "update", "payments")
        edited = shop / PAYMENTS / "steps.txt"
        edited.write_text(block + edited_block + block)
        commit_all(shop)
        steps.write_text(f"new\n{block}" + block * 3)
        found.release("1.4.0")
        command(shop, "update", "payments")
        assert edited.read_text() == f"new\n{block}{block}{edited_block}{block}"


def generated(folder: Path) -> dict[str, bytes]:
    return {path: text for path, text in tree(folder).items() if "_0001_" not in path}


class TestConflicts:
    def test_stop_it_and_it_goes_on_when_they_are_solved(self, shop: Path) -> None:
        """Even where the conflict is in what every other command needs."""
        for part in ("src/shop/.", PAYMENTS):
            edit(shop / part / "__init__.py", "# Ours.\n")
        (shop / "src/shop/cli.py").write_text("<<<<<<<")
        commit_all(shop)
        printed = command(shop, "update", fails=True)
        assert "Both you and the template have changed these places" in printed
        assert "src/shop/__init__.py:1\n" in printed
        assert "_commit: 1.0.0" in (shop / ORDERS / ANSWERS).read_text()
        solve(shop / "src/shop/__init__.py")
        printed = command(shop, "update", fails=True)
        assert "Updating service" not in printed
        assert "Updating orders" in printed
        assert f"{PAYMENTS}/__init__.py:1" in printed
        assert f"conflict: {PAYMENTS}/__init__.py:1" in command(shop, "status")
        assert f"{PAYMENTS}/__init__.py:1" in refused(shop)
        solve(shop / PAYMENTS / "__init__.py")
        assert "Nothing to update" in command(shop, "update")
        assert versions_of(shop) == {"1.1.0"}

    def test_go_on_with_what_was_given(self, shop: Path) -> None:
        edit(shop / PAYMENTS / "__init__.py", "# Ours.\n")
        commit_all(shop)
        given = ("update", "payments", "--to", "1.1.0", "--defaults")
        printed = command(shop, *given, fails=True)
        assert f"run `uv run shop template {' '.join(given)}` again: it goes on" in printed
        solve(shop / PAYMENTS / "__init__.py")
        assert "3. uv run shop db revision payments" in command(shop, *given)

    def test_tell_what_was_removed_as_well(self, shop: Path) -> None:
        """Whoever commits when they are solved would not be told at the end."""
        edit(shop / "src/shop/base/version_1.py", "# Ours.\n")
        edit(shop / "src/shop/__init__.py", "# Ours.\n")
        commit_all(shop)
        removed = "  src/shop/base/version_1.py   # changed since the last update\n"
        printed = command(shop, "update", fails=True)
        assert removed in printed
        assert printed.index(removed) < printed.index("Both you and the template have changed")
        solve(shop / "src/shop/__init__.py")
        commit_all(shop)
        assert removed not in command(shop, "update")

    def test_next_steps_are_those_of_all_runs(self, shop: Path) -> None:
        """Also where the last slice was the one with the conflict."""
        for slice_ in (ORDERS, PAYMENTS):
            edit(shop / slice_ / "__init__.py", "# Ours.\n")
        commit_all(shop)
        assert "db revision" not in command(shop, "update", fails=True)
        solve(shop / ORDERS / "__init__.py")
        assert "db revision" not in command(shop, "update", fails=True)
        solve(shop / PAYMENTS / "__init__.py")
        printed = command(shop, "update")
        assert "3. uv run shop db revision orders -m 'Update orders'" in printed
        assert "4. uv run shop db revision payments -m 'Update payments'" in printed
        assert git(shop, "diff", "--name-only") == ""
        commit_all(shop)
        assert "Next:" not in command(shop, "update")

    def test_markers_that_are_part_of_a_text_are_none(self, shop: Path) -> None:
        (shop / "how.md").write_text(
            f"Take out `<<<<<<< `:\n<<<<<<< ours\nTitle\n=======\n{CONFLICT}"
        )
        (shop / "a.txt").write_text("<<<<<<< here\n=======\n")
        (shop / "b.txt").write_text(f"======= \n>>>>>>> there\n  {CONFLICT.replace('=', '')}")
        (shop / "c:1.txt").write_bytes(
            CONFLICT.replace("a", "=======").replace("\n", "\r\n").encode()
        )
        commit_all(shop)
        printed = refused(shop)
        assert re.findall(r"^  (\S+):(\d+)$", printed, re.MULTILINE) == [
            ("c:1.txt", "1"),
            ("how.md", "5"),
        ]
        for name in ("c:1.txt", "how.md"):
            (shop / name).unlink()
        commit_all(shop)
        command(shop, "update")
        assert versions_of(shop) == {"1.1.0"}

    @pytest.mark.parametrize(
        ("file", "text"),
        [
            (".git/config", "[color]\n\tui = always\n"),
            (".git/config", "[color]\n\tgrep = always\n"),
            (".git/config", "[grep]\n\tcolumn = true\n"),
            (".git/config", "[submodule]\n\trecurse = true\n"),
            (".gitattributes", "*.py -diff\n"),
        ],
    )
    def test_are_found_whatever_git_is_told(self, shop: Path, file: str, text: str) -> None:
        with (shop / file).open("a") as settings:
            settings.write(text)
        edit(shop / PAYMENTS / "__init__.py", CONFLICT)
        commit_all(shop)
        assert f"  {PAYMENTS}/__init__.py:1\n" in refused(shop)

    @pytest.mark.parametrize("quoted", ["true", "false"])
    def test_in_files_of_any_name(self, shop: Path, quoted: str) -> None:
        """A name is any bytes, and so is what is behind a marker."""
        git(shop, "config", "core.quotepath", quoted)
        for name in ("é.txt".encode(), b"\xff.txt"):
            (shop / os.fsdecode(name)).write_bytes(CONFLICT.encode() + b"<<<<<<< \xff\n")
        commit_all(shop)
        assert "\n  é.txt:1\n  \\udcff.txt:1\n" in refused(shop)

    def test_rejected_hunks_count(self, shop: Path) -> None:
        (shop / "README.md.rej").write_text("@@\n")
        assert "README.md.rej" in refused(shop)


def solve(file: Path) -> None:
    """Take both, without the markers."""
    kept = [line for line in file.read_text().splitlines(True) if line[:7] not in MARKS]
    file.write_text("".join(kept))


MARKS = ("<<<<<<<", "=======", ">>>>>>>")
CONFLICT = "<<<<<<< ours\na\n=======\nb\n>>>>>>> theirs\n"


class TestRefusals:
    def test_changes_that_are_not_committed(self, shop: Path) -> None:
        edit(shop / "src/shop/__init__.py", "# Ours.\n")
        assert "M src/shop/__init__.py" in refused(shop)
        assert "M src/shop/__init__.py" in refused(shop, "update", "payments")

    def test_a_slice_that_is_not_committed_in_an_update_that_is_under_way(self, shop: Path) -> None:
        edit(shop / "src/shop/__init__.py", "# Ours.\n")
        commit_all(shop)
        command(shop, "update", fails=True)
        solve(shop / "src/shop/__init__.py")
        edit(shop / ORDERS / "models.py", "# Ours.\n")
        assert f"M {ORDERS}/models.py" in refused(shop)

    def test_an_unknown_slice(self, shop: Path) -> None:
        printed = refused(shop, "update", "nope")
        assert "No slice nope of the template is here; there are: orders, payments." in printed

    def test_slices_that_would_get_ahead_of_their_service(
        self, released: Versions, shop: Path, tmp_path: Path
    ) -> None:
        found = moved(released, tmp_path, shop)
        found.release_next(4)
        printed = refused(shop, "update", "payments")
        assert "service is at 1.0.0, and these slices would come to 4.0.0: only within" in printed
        command(shop, "update", "payments", "--to", "1.1.0")
        commit_all(shop)
        command(shop, "update")
        assert versions_of(shop) == {"4.0.0"}

    @pytest.mark.parametrize("arguments", [("update",), ("status",)])
    def test_no_answers(self, shop: Path, arguments: tuple[str]) -> None:
        (shop / ANSWERS).unlink()
        assert f"There is no {ANSWERS} in {shop}" in refused(shop, *arguments)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("_commit: 1.0.0\n", "", f"{PAYMENTS}/{ANSWERS} has no _commit"),
            ("_src_path: ", "source: ", f"{PAYMENTS}/{ANSWERS} has no _src_path"),
            ("_commit: 1.0.0", "_commit: 0.7.0", "Unknown revision: '0.7.0'"),
            ("fields: amount:int", "fields: amount:euros", "amount has the unknown type euros"),
            ("fields: amount:int\n", "", '"fields" is required'),
            ("fields: amount:int", "fields: [", f'{PAYMENTS}/{ANSWERS}", line '),
            ("born: payments", "born: refunds", "This slice was born as refunds"),
        ],
    )
    def test_answers_that_were_edited(self, shop: Path, old: str, new: str, message: str) -> None:
        answers = shop / PAYMENTS / ANSWERS
        assert old in answers.read_text()
        answers.write_text(answers.read_text().replace(old, new))
        commit_all(shop)
        printed = refused(shop, "update", "payments")
        assert message in printed
        assert len(printed.splitlines()) < 5

    @pytest.mark.parametrize("source", ["/nowhere", "https://localhost:1/template.git"])
    @pytest.mark.parametrize("arguments", [("update",), ("status",)])
    def test_a_template_that_cannot_be_reached(
        self, released: Versions, shop: Path, source: str, arguments: tuple[str]
    ) -> None:
        for file in shop.rglob(ANSWERS):
            file.write_text(file.read_text().replace(str(released.path), source))
        commit_all(shop)
        printed = refused(shop, *arguments)
        assert f"Copier cannot compare {shop} with {source} at 1.0.0: " in printed

    def test_a_version_that_vanished(self, released: Versions, shop: Path, tmp_path: Path) -> None:
        """Its commit does as well, which is the way out."""
        found = moved(released, tmp_path, shop)
        commit = git(found.path, "rev-parse", "1.0.0")
        git(found.path, "tag", "--delete", "1.0.0")
        assert "at 1.0.0: ValueError: Unknown revision: '1.0.0'" in refused(shop)
        answers = shop / PAYMENTS / ANSWERS
        answers.write_text(answers.read_text().replace("_commit: 1.0.0", f"_commit: {commit}"))
        commit_all(shop)
        command(shop, "update", "payments")
        assert "_commit: 1.1.0" in answers.read_text()

    def test_a_version_that_never_was(self, shop: Path) -> None:
        printed = refused(shop, "update", "--to", "9.9.9")
        assert "Copier could not update service, which is as it was: " in printed
        assert "9.9.9" in printed

    def test_an_earlier_version(self, shop: Path) -> None:
        command(shop, "update", "payments")
        commit_all(shop)
        printed = refused(shop, "update", "payments", "--to", "1.0.0")
        assert "You are downgrading from 1.1.0 to 1.0.0" in printed

    def test_outside_of_git(self, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(shop.parent))
        shutil.rmtree(shop / ".git")
        before = tree(shop)
        assert "not a git repository" in command(shop, "update", fails=True)
        assert tree(shop) == before

    def test_a_service_that_its_repository_ignores(self, shop: Path) -> None:
        shutil.rmtree(shop / ".git")
        (shop.parent / ".gitignore").write_text("/shop/\n")
        commit_all(shop.parent)
        assert f"{shop / ANSWERS} is not committed" in refused(shop)

    @pytest.mark.parametrize("files", [".", ".gitignore"], ids=["staged", "untracked"])
    def test_a_service_that_was_never_committed(self, shop: Path, files: str) -> None:
        shutil.rmtree(shop / ".git")
        git(shop, "init", "--quiet")
        git(shop, "add", files)
        assert f"{shop / ANSWERS} is not committed" in refused(shop)

    def test_an_update_that_breaks_off_leaves_nothing(
        self, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Copier has written by then: a file more, and another for one that was there."""
        copier = tmp_path / "copier"
        copier.write_text(
            "#!/bin/sh\n"
            f'test "$1" = update || exec {sys.executable} -m copier "$@"\n'
            f"cd {shop}; echo new >new.txt; echo other >src/shop/__init__.py\n"
            'echo "no space left" >&2; exit 1\n'
        )
        copier.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        printed = refused(shop)
        assert "Copier could not update service, which is as it was: no space left" in printed

    def test_an_update_that_was_killed_is_undone_before_it_goes_on(
        self, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Copier writes its new version first, and only then merges what was edited."""
        edited = shop / "src/shop/__main__.py"
        edited.write_text(edited.read_text() + "# Ours.\n")
        commit_all(shop)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", path_to_killed(tmp_path, f"sed -i '/Ours/d' {edited}"))
            command(shop, "update", fails=True)
        assert f"An update of {shop} broke off in the middle" in refused(shop)
        command(shop, "update", "--restart")
        assert edited.read_text().endswith("# Ours.\n")
        assert versions_of(shop) == {"1.1.0"}

    @pytest.mark.parametrize(
        "happened",
        [
            pytest.param(
                f"git mv {PAYMENTS} {SLICES}/receipts; git add -A; git commit -qm x", id="moved"
            ),
            pytest.param(f"git rm -rqf {PAYMENTS}; git commit -qm x", id="removed"),
            pytest.param("mv $PWD $PWD/../elsewhere", id="repository"),
        ],
    )
    def test_an_update_that_was_killed_is_undone_wherever_its_folder_is_now(
        self, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: str
    ) -> None:
        new = f"{shop / PAYMENTS}/new.txt"
        with monkeypatch.context() as patch:
            patch.setenv("PATH", path_to_killed(tmp_path, f"echo new >{new}"))
            command(shop, "update", "payments", fails=True)
        subprocess.run(happened, shell=True, cwd=shop, check=True)
        shop = next(one for one in (shop, tmp_path / "elsewhere") if one.exists())
        printed = refused(shop)
        assert f"An update of {shop / PAYMENTS} broke off in the middle" in printed
        command(shop, "update", "--restart")
        assert not (shop / PAYMENTS / "new.txt").exists()
        assert versions_of(shop) == {"1.1.0"}

    def test_files_that_git_does_not_show_are_changes_as_well(self, shop: Path) -> None:
        git(shop, "config", "status.showUntrackedFiles", "no")
        (shop / PAYMENTS / "notes.txt").write_text("mine\n")
        assert "notes.txt" in refused(shop)


def path_to_killed(folder: Path, writes: str) -> str:
    """A PATH with a Copier that writes something, and is killed with the command that called it."""
    copier = folder / "copier"
    copier.write_text(
        "#!/bin/sh\n"
        f'test "$1" = update || exec {sys.executable} -m copier "$@"\n'
        f"{writes}\nkill -9 $PPID\n"
    )
    copier.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


class TestSources:
    """Where the template may be; the version is not said, so that Copier chooses it."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Versions:
        found = versions.thin(tmp_path / "made" / "template")
        found.change_everything(1)
        commit_all(found.path)
        return found

    def copy(self, url: str, shop: Path) -> Path:
        for target in (shop, shop / PAYMENTS):
            copier.run_copy(url, target, defaults=True, quiet=True, data={"fields": ""})
        commit_all(shop)
        return shop

    @pytest.mark.parametrize("url", ["{0}", "git+file://{0}", "file://{0}/.git"])
    def test_with_tags(self, source: Versions, tmp_path: Path, url: str) -> None:
        """Of later versions that are no pre-releases, the newest."""
        git(source.path, "tag", "1.0.0")
        shop = self.copy(url.format(source.path), tmp_path / "shop")
        assert versions_of(shop) == {"1.0.0"}
        for number, tag in enumerate(("1.1.0", "1.2.0", "2.0.0rc1"), 2):
            source.change_everything(number)
            source.release(tag)
        assert "service   1.0.0  1.2.0" in command(shop, "status")
        command(shop, "update", "payments")
        assert "_commit: 1.2.0" in (shop / PAYMENTS / ANSWERS).read_text()

    def test_without_tags(self, source: Versions, tmp_path: Path) -> None:
        """The newest commit."""
        shop = self.copy(str(source.path), tmp_path / "shop")
        assert versions_of(shop) == {git(source.path, "describe", "--always")}
        source.change_everything(2)
        commit_all(source.path)
        assert ["service", *versions_of(shop)] in [
            line.split()[:2] for line in command(shop, "status").splitlines()
        ]
        command(shop, "update")
        assert versions_of(shop) == {git(source.path, "describe", "--always")}
        assert "Nothing to update" in command(shop, "update")

    def test_that_is_newer_than_its_last_tag(self, source: Versions, tmp_path: Path) -> None:
        """Who has copied its newest commit is updated from there to the next tag."""
        git(source.path, "tag", "1.0.0")
        source.change_everything(2)
        commit_all(source.path)
        shop = Template(source.path).copy(tmp_path / "shop")
        commit_all(shop)
        assert "Nothing to update" in command(shop, "update")
        source.release_next(3)
        command(shop, "update")
        assert versions_of(shop) == {"3.0.0"}

    def test_a_service_in_a_larger_repository(self, released: Versions, tmp_path: Path) -> None:
        top = tmp_path / "mono"
        shop = make(released.at("1.0.0"), top / "services/shop")
        shutil.rmtree(shop / ".git")
        (top / "other.txt").write_text("other\n")
        commit_all(top)
        git(top, "config", "grep.fullName", "true")
        edit(shop / PAYMENTS / "__init__.py", "# Ours.\n")
        commit_all(top)
        (top / "other.txt").write_text("changed, which is nothing to the service\n")
        printed = command(shop, "update", fails=True)
        assert f"\n  {PAYMENTS}/__init__.py:1\n" in printed
        solve(shop / PAYMENTS / "__init__.py")
        assert "Nothing to update" in command(shop, "update")
        assert versions_of(shop) == {"1.1.0"}
        assert git(top, "diff", "--name-only") == "other.txt"
