#!/usr/bin/env python3
"""Does what README.md and docs/ tell the reader to do. Every block of commands is run, the blocks of a page one after the other as
a reader would, beside a cluster of three nodes, in a network and with processes of its own; or it says why not:

    <!-- not run: REASON -->        on the line before the block
    <!-- run: until stopped -->     the block's last command stays in the foreground; without a cluster beside it

The words of LANCE's own programs are checked in any case, also in blocks that are not run and where commands stand in the
text. Configurations are checked by `lance config check`, unless they too say why not. Files, links, pictures and headings that are
named must exist. Needs root, and lance, lnc-bench and lnc-chaos in $LANCE_PROGRAMS.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = ("lance", "lnc-bench", "lnc-chaos")
LANGUAGES = {"sh", "text", "toml", "yaml", "json", "rust"}
# Longest time for one page, in seconds.
PATIENCE = 300

FIXTURE = """
./genCluster.sh >/dev/null
lance topic create orders --partitions 3 >/dev/null
seq 1000 | tee orders.txt | lance produce orders --quiet
"""


@dataclass
class Block:
    page: str
    line: int
    language: str
    marker: str
    text: str

    @property
    def at(self):
        return f"{self.page}:{self.line}"


def blocks(page, text):
    """The fenced blocks of a page."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        fence = re.match(r"( *)```(\S*)", lines[at])
        if not fence:
            at += 1
            continue
        end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
        before = lines[at - 1].strip() if at else ""
        marker = re.fullmatch(r"<!-- ((?:not )?run: ?.*?) ?-->", before)
        body = "\n".join(line.removeprefix(fence[1]) for line in lines[at + 1 : end])
        yield Block(page, at + 1, fence[2].split(",")[0], marker[1] if marker else "", body)
        at = end + 1


def spans(text):
    """Commands of LANCE's own programs that stand in the text, with the line of each."""
    outside = re.sub(r"^( *)```.*?^ *```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)
    for span in re.finditer(r"`([^`]+)`", outside):
        command = " ".join(span[1].split())
        if command.split(" ")[0] in PROGRAMS and " " in command:
            yield outside.count("\n", 0, span.start()) + 1, command


def own_commands(text):
    """The commands of LANCE's own programs in a block, without what the shell does with them."""
    for line in re.sub(r"\\\n\s*", " ", text).split("\n"):
        # What follows is an explanation.
        line = re.split(r" # | {3,}", line.strip())[0]
        for part in re.split(r"[|;&]|\bdo\b|\$\(", line):
            part = re.sub(r"^\s*(?:[A-Z_]+=\S+\s+)*", "", part)
            part = re.split(r"\s[0-9]?>|\s<", part)[0].strip()
            program = part.split(" ")[0].rsplit("/", 1)[-1]
            if program in PROGRAMS:
                yield " ".join([program, *part.split(" ")[1:]])


def misunderstood(command):
    """Why a program does not understand its words; None if it does. Nothing is done: it is asked for its help."""
    try:
        words = shlex.split(re.sub(r"\$\w+", "0", command))
    except ValueError as error:
        return str(error)
    if "…" in words:
        words = words[: words.index("…")]
        # An option whose value is left out.
        if words[-1].startswith("-"):
            words.pop()
    done = subprocess.run([*words, "--help"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return None if done.returncode == 0 else done.stderr.strip().split("\n")[0]


def heading_ids(text):
    """The fragments by which the headings of a page are linked to."""
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.M):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def check_names(page, text):
    """Files and links that a page names."""
    outside = re.sub(r"^( *)```.*?^ *```$", "", text, flags=re.M | re.S)
    for path in re.findall(r"`((?:(?:lance|lnc-\w+)/(?:src|tests|examples)|deploy|docs|fuzz)[\w./-]+)`", outside):
        if not (ROOT / path).exists():
            yield f"{page}: there is no {path}"
    for target in re.findall(r"\]\(([^)\s]+)\)|\bsrc(?:set)?=\"([^\"]+)\"", outside):
        target = "".join(target)
        if re.match(r"\w+:", target):
            continue
        path, _, fragment = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        if not linked.exists():
            yield f"{page}: the link {target} leads nowhere"
        elif fragment and fragment not in heading_ids(text if not path else linked.read_text()):
            yield f"{page}: {target}: there is no such heading"


def check_words(page, text):
    yield from check_names(page, text)
    for line, command in spans(text):
        if problem := misunderstood(command):
            yield f"{page}:{line}: `{command}`: {problem}"
    for block in blocks(page, text):
        if block.language not in LANGUAGES:
            yield f"{block.at}: the block must say what it holds: {', '.join(sorted(LANGUAGES))}"
        if re.fullmatch(r"not run:\s*", block.marker):
            yield f"{block.at}: say why it is not run"
        if block.language in ("sh", "text"):
            for command in own_commands(block.text):
                if problem := misunderstood(command):
                    yield f"{block.at}: {command}: {problem}"
        if block.language == "toml" and not block.marker:
            with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
                file.write(block.text)
                file.flush()
                done = subprocess.run(["lance", "config", "check", file.name], capture_output=True, text=True)
                if done.returncode != 0:
                    yield f"{block.at}: {done.stderr.strip()}"


def run(script, until_stopped=False):
    """Runs a script in a network and a directory of its own; gives what it says if it fails. All its processes end with it."""
    with tempfile.TemporaryDirectory(prefix="lance-documents-") as directory:
        home = Path(directory)
        shutil.copy(ROOT / "genCluster.sh", home)
        tools = home / ".tools"
        tools.mkdir()
        cargo = tools / "cargo"
        cargo.write_text(f'#!/bin/sh\ncd "{ROOT}" && exec "{shutil.which("cargo")}" "$@"\n')
        cargo.chmod(0o755)
        # What stays in the foreground is there when its time is up, and only then.
        limit, good = (8, 124) if until_stopped else (PATIENCE, 0)
        (home / ".script").write_text(script)
        wrapped = f"""
            ip link set lo up && timeout {limit} bash -euo pipefail .script
            code=$?
            ./genCluster.sh clean >/dev/null
            exit $code"""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LANCE_")}
        environment |= {
            "LANCE_BIN": shutil.which("lance"),
            "PATH": f"{tools}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", wrapped],
            cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        return None if done.returncode == good else f"exit code {done.returncode}:\n{done.stdout[-3000:]}"


def check_runs(page, text):
    """Runs the blocks of a page; gives what fails, and how many were run."""
    shells = [block for block in blocks(page, text) if block.language == "sh"]
    together = [block for block in shells if not block.marker]
    alone = [block for block in shells if block.marker.startswith("run:")]
    problems = []
    for block in alone:
        if block.marker != "run: until stopped":
            problems.append(f"{block.at}: there is no marker {block.marker!r}")
        elif failure := run(block.text, until_stopped=True):
            problems.append(f"{block.at}: {failure}")
    if together:
        script = [] if "./genCluster.sh" in together[0].text else [FIXTURE]
        for block in together:
            script.append(f"echo '== the block at {block.at}'\n{block.text}\n")
        if failure := run("\n".join(script)):
            problems.append(f"{page}: {failure}")
    return problems, len(together) + len(alone)


def self_test():
    """The mistakes that must be found."""
    fence = lambda language, text, marker="": f"# Page\n{marker}\n```{language}\n{text}\n```\n"
    good = fence("sh", "lance topic list | grep orders\nlance consume orders --until-end >all") + "`lance cluster status`\n"
    assert list(check_words("good", good)) == [] and check_runs("good", good) == ([], 1)
    assert list(check_words("good", fence("toml", "[dependencies]", "<!-- not run: of another program -->"))) == []
    for text in [
        fence("", "lance topic list"),
        fence("sh", "sudo rm -r x", "<!-- not run: -->"),
        fence("sh", "lance topic lost", "<!-- not run: needs a cluster -->"),
        fence("sh", "seq 3 | lance produce orders --speed 3"),
        fence("text", "  lnc-bench produce --partition 3      explained"),
        fence("toml", "[node]\nidd = 3"),
        fence("toml", "[dependencies]", "<!-- not run: -->"),
        "`lance cluster stat`\n",
        "as `lance/tests/nothing.rs` proves\n",
        "see [there](docs/NOWHERE.md)\n",
        "see [there](docs/README.md#nothing)\n",
        '<img src="docs/pictures/nothing.png">\n',
        "and `lance\nproduce --ack none`\n",
    ]:
        assert list(check_words("bad", text)), f"not found:\n{text}"
    for text in [
        fence("sh", "lance topic describe nothing >/dev/null"),
        fence("sh", "false\ntrue"),
        fence("sh", "lance server --set node.id=0", "<!-- run: until stopped -->"),
        fence("sh", "true", "<!-- run: maybe -->"),
    ]:
        assert check_runs("bad", text)[0], f"not found:\n{text}"


def main():
    os.environ["PATH"] = f"{os.environ['LANCE_PROGRAMS']}:{os.environ['PATH']}"
    for program in PROGRAMS:
        assert shutil.which(program), f"$LANCE_PROGRAMS has no {program}"
    pages = sys.argv[1:] or ["README.md", "CHANGELOG.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
    if not sys.argv[1:]:
        self_test()
    problems, ran, marked = [], 0, 0
    for page in pages:
        text = (ROOT / page).read_text()
        problems += check_words(page, text)
        failures, count = check_runs(page, text)
        problems += failures
        ran += count
        marked += sum(block.language == "sh" and block.marker.startswith("not run:") for block in blocks(page, text))
    if problems:
        print("\n".join(problems))
        return 1
    print(f"> {ran} blocks of commands in {len(pages)} pages do what they say; {marked} say why they are not run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
