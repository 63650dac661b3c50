"""What people expect of a repository: pages, forms, a workflow, one version in all places."""

import re
import textwrap
import tomllib

import pytest
import yaml

import p2o
from documents import PAGES, ROOT, blocks_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_version_is_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert PROJECT["project"]["version"] == p2o.__version__ == str(cited)


def test_the_changelog_has_a_section_for_what_is_next_and_the_versions_in_order():
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *released = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)
    assert first == ("Unreleased", "")
    assert all(date for _, date in released) and released == sorted(released, key=lambda one: one[1], reverse=True)
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds and kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_changelog_names_every_command(capsys):
    from p2o.cli import main

    main([])
    commands = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE)
    text = (ROOT / "CHANGELOG.md").read_text()
    assert len(commands) == 9 and all(f"`p2o {command}" in text for command in commands)


@pytest.mark.parametrize("form", [form for form in FORMS if form.name != "config.yml"], ids=lambda form: form.stem)
def test_an_issue_form_is_one(form):
    content = yaml.safe_load(form.read_text())
    assert content["name"] and content["description"]
    ids = [part["id"] for part in content["body"] if part["type"] != "markdown"]
    assert ids and len(set(ids)) == len(ids)
    assert any(part.get("validations", {}).get("required") for part in content["body"])


def test_public_ci_runs_what_has_to_pass():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert ".ci/run" in [step.get("run") for step in job["steps"]] and (ROOT / ".ci" / "run").stat().st_mode & 0o100
    asked = next(step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {}))
    assert f">={asked}" == PROJECT["project"]["requires-python"]
    assert workflow["permissions"] == {"contents": "read"}


def test_what_the_sdist_includes_exists():
    for name in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
        assert list(ROOT.glob(name)), name


@pytest.mark.parametrize("page", [*PAGES, ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md"], ids=lambda page: page.name)
def test_a_page_links_to_files_that_exist(page):
    """Within the repository; a link to the web is not followed."""
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL))
    inner = [link.partition("#")[0] for link in links if not re.match(r"https?:|mailto:|#", link)]
    assert not [link for link in inner if not (page.parent / link).exists()]


def test_the_script_that_is_type_checked_strictly_has_the_readmes_example():
    (diff,) = [block for block in blocks_of(ROOT / "README.md") if block.language == "diff"]
    assert textwrap.indent(diff.side("+").text, "    ") in (ROOT / "tests" / "public_api.py").read_text()
    assert "tests/public_api.py" in PROJECT["tool"]["mypy"]["files"]
