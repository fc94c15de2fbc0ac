#!/usr/bin/env python3
"""Checks that includes flow one way: tools -> tasks -> models -> ops -> engine.

The root of the repository is the include path, so the compiler accepts any direction; this test does not. It also keeps
third-party headers where they belong, wants `#pragma once` in every header and `#include "folder/file.h"` spelled from
the root, and keeps files built for one instruction set free of headers with inline functions.

    tools/check_includes.py [ROOT]       exit 1 and one line per finding
    tools/check_includes.py --self-test  checks the checker on small made-up trees
"""

import re
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

FOLDERS = ("engine", "ops", "models", "tasks", "tools", "tests")
HEADERS = {".h", ".hpp", ".cuh"}
SOURCES = HEADERS | {".cpp", ".cc", ".cu"}

# What each folder may include of the project. Tests may include anything.
MAY_INCLUDE = {
    "engine": {"engine"},
    "ops": {"engine", "ops"},
    "models": {"engine", "ops", "models"},
    "tasks": {"engine", "ops", "models", "tasks"},
    "tools": {"engine", "ops", "models", "tasks", "tools"},
    "tests": set(FOLDERS),
}

# (included path, files that may include it): exceptions inside the folders above. `*` also crosses slashes.
GUARDED = [
    ("ops/cpu/*", ["ops/cpu/*"]),
    ("ops/cuda/*", ["ops/cuda/*"]),
    ("engine/cuda/*", ["engine/cuda/*", "engine/*.cu", "ops/cuda/*"]),
    ("tests/*", ["tests/*"]),
]

# (name, headers, files that may include them). Headers that no row matches are refused as unknown dependencies.
LIBRARIES = [
    ("Eigen", ["Eigen/*", "unsupported/Eigen/*"], ["ops/cpu/*"]),
    ("BLAS", ["cblas.h", "openblas*", "lapacke.h"], ["ops/cpu/*"]),
    ("CUDA", ["cuda*", "cublas*", "cufft*", "cooperative_groups*", "cub/*", "nvtx3/*", "mma.h"],
     ["engine/cuda/*", "engine/*.cu", "ops/cuda/*"]),
    ("CPU intrinsics", ["immintrin.h", "x86intrin.h", "*mmintrin.h", "arm_neon.h", "arm_sve.h", "cpuid.h"],
     ["ops/cpu/*"]),
    ("OpenMP", ["omp.h"], ["ops/cpu/*", "engine/*"]),
    ("CLI11", ["CLI/*"], ["tools/*"]),
    ("toml++", ["toml++/*"], ["tasks/config.cpp"]),
    ("nlohmann-json", ["nlohmann/*"],
     ["engine/serialize*.cpp", "engine/safetensors*.cpp", "tasks/*.cpp", "tools/*.cpp"]),
    ("PCRE2", ["pcre2.h"], ["tasks/tokenizer/pattern_pcre2.cpp"]),
    ("doctest", ["doctest/*", "doctest.h"], ["tests/*"]),
    ("fmt", ["fmt/*"], ["*"]),
    ("sanitizers", ["sanitizer/*"], ["engine/*.cpp"]),
    ("POSIX", ["sys/*", "signal.h", "unistd.h", "fcntl.h", "dlfcn.h", "pthread.h", "poll.h", "spawn.h", "termios.h", "ucontext.h", "dirent.h",
               "strings.h"], ["*"]),
]

# Inline functions of other headers would be compiled for the instruction set too, and the linker may pick that copy.
PLAIN_HEADERS = {"immintrin.h", "x86intrin.h", "arm_neon.h", "arm_sve.h", "cstdint", "cstddef", "stdint.h", "stddef.h"}
INSTRUCTION_SET = re.compile(r"(?:^|_)(?:avx\d*|amx|sse\d*|fma|neon|sve)(?=[_.])")

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"\n]+)"|<([^>\n]+)>)', re.MULTILINE)
COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|("(?:\\.|[^"\\\n])*")', re.DOTALL)


def strip_comments(text):
    """The text without comments; strings, and the number of every line, stay."""
    return COMMENT.sub(lambda m: m.group(1) or "\n" * m.group(0).count("\n"), text)


def matches(path, patterns):
    return any(fnmatch(path, pattern) for pattern in patterns)


def is_standard(header):
    return re.fullmatch(r"[a-z0-9_]+", header) is not None or header in {"stdint.h", "stddef.h"}


class Checker:
    def __init__(self, root):
        self.root = Path(root)
        self.findings = []
        self.includes = {}  # file -> [(line, quoted, header)]

    def add(self, path, line, message):
        self.findings.append(f"{path}:{line}: {message}")

    def run(self):
        for folder in FOLDERS:
            for path in sorted((self.root / folder).rglob("*")):
                if path.suffix in SOURCES and path.is_file():
                    self.read(path)
        for path, includes in self.includes.items():
            for line, quoted, header in includes:
                (self.check_own if quoted else self.check_library)(path, line, header)
            if INSTRUCTION_SET.search(Path(path).name):
                self.check_instruction_set(path)
        return self.findings

    def read(self, path):
        name = path.relative_to(self.root).as_posix()
        text = strip_comments(path.read_text(encoding="utf-8"))
        self.includes[name] = [(text.count("\n", 0, m.start()) + 1, m.group(1) is not None, m.group(1) or m.group(2))
                               for m in INCLUDE.finditer(text)]
        if path.suffix in HEADERS and not re.search(r"^#pragma once$", text, re.MULTILINE):
            self.add(name, 1, "header without #pragma once")

    def check_own(self, path, line, header):
        target = header.split("/")[0]
        if target not in FOLDERS or not (self.root / header).is_file():
            self.add(path, line, f'"{header}" is no file seen from the root of the repository')
            return
        folder = path.split("/")[0]
        if target not in MAY_INCLUDE[folder]:
            self.add(path, line, f'{folder} must not include {target} ("{header}")')
            return
        for guarded, allowed in GUARDED:
            if folder != "tests" and fnmatch(header, guarded) and not matches(path, allowed):
                self.add(path, line, f'"{header}" is only for {", ".join(allowed)}')

    def check_library(self, path, line, header):
        for name, headers, allowed in LIBRARIES:
            if matches(header, headers):
                if not path.startswith("tests/") and not matches(path, allowed):
                    self.add(path, line, f"<{header}>: {name} is only for {', '.join(allowed)}")
                return
        if not is_standard(header):
            self.add(path, line, f"<{header}> belongs to no dependency of the project")

    def check_instruction_set(self, path):
        """Follows the project's own headers: none may bring in a header with inline functions."""
        seen, todo = {path}, [path]
        while todo:
            current = todo.pop()
            for line, quoted, header in self.includes.get(current, []):
                if quoted and header not in seen:
                    seen.add(header)
                    todo.append(header)
                elif not quoted and header not in PLAIN_HEADERS:
                    via = "" if current == path else f", included by {current}:{line}"
                    self.add(path, line if current == path else 1,
                             f"<{header}>{via} may leak code for this instruction set into the portable build")


def self_test():
    """(files, expected fragments of the findings, in order)"""
    header = "#pragma once\n"
    cases = [
        ({"engine/a.h": header, "ops/b.cpp": '#include "engine/a.h"\n#include <vector>\n#include <fmt/core.h>\n'}, []),
        ({"engine/a.h": "int x;\n"}, ["engine/a.h:1: header without #pragma once"]),
        ({"ops/b.h": header, "engine/a.cpp": '\n#include "ops/b.h"\n'},
         ["engine/a.cpp:2: engine must not include ops"]),
        ({"tasks/t.h": header, "models/m.cpp": '#include "tasks/t.h"\n'}, ["models must not include tasks"]),
        ({"tools/t.h": header, "tasks/m.cpp": '#include "tools/t.h"\n'}, ["tasks must not include tools"]),
        ({"tests/t.h": header, "tools/m.cpp": '#include "tests/t.h"\n'}, ["tools must not include tests"]),
        ({"tools/t.h": header, "tests/m.cpp": '#include "tools/t.h"\n#include <Eigen/Core>\n'}, []),
        ({"ops/cpu/k.h": header, "ops/b.cpp": '#include "ops/cpu/k.h"\n'}, ['"ops/cpu/k.h" is only for ops/cpu/*']),
        ({"ops/cpu/k.h": header, "ops/cuda/b.cu": '#include "ops/cpu/k.h"\n'}, ["is only for ops/cpu/*"]),
        ({"engine/cuda/c.cuh": header, "ops/cuda/b.cu": '#include "engine/cuda/c.cuh"\n#include <cuda.h>\n'}, []),
        ({"engine/cuda/c.cuh": header, "models/b.cpp": '#include "engine/cuda/c.cuh"\n'},
         ["is only for engine/cuda/*"]),
        ({"models/m.cpp": "#include <Eigen/Core>\n"}, ["Eigen is only for ops/cpu/*"]),
        ({"ops/m.cpp": "#include <cblas.h>\n"}, ["BLAS is only for ops/cpu/*"]),
        ({"engine/m.cpp": "#include <cuda_runtime.h>\n"}, ["CUDA is only for"]),
        ({"tasks/m.cpp": "#include <toml++/toml.h>\n"}, ["toml++ is only for tasks/config.cpp"]),
        ({"tasks/m.h": header + "#include <nlohmann/json.hpp>\n"}, ["nlohmann-json is only for"]),
        ({"tasks/m.cpp": "#include <CLI/CLI.hpp>\n"}, ["CLI11 is only for tools/*"]),
        ({"tasks/m.cpp": "#include <boost/any.hpp>\n"}, ["belongs to no dependency"]),
        ({"tasks/m.cpp": '#include "m.h"\n', "tasks/m.h": header}, ['"m.h" is no file seen from the root']),
        ({"engine/a.cpp": '// #include "ops/b.h"\n/* \n#include <boost/any.hpp>\n*/\nconst char* s = "/*";\n'
                          "#include <cblas.h>\n"}, ["engine/a.cpp:6: <cblas.h>"]),
        ({"ops/k.h": header + "#include <vector>\n",
          "ops/cpu/k_avx2.cpp": '#include <immintrin.h>\n#include "ops/k.h"\n'},
         ["ops/cpu/k_avx2.cpp:1: <vector>, included by ops/k.h:2"]),
    ]
    for files, expected in cases:
        with tempfile.TemporaryDirectory() as root:
            for name, text in files.items():
                path = Path(root) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            findings = Checker(root).run()
        good = len(findings) == len(expected) and all(part in got for part, got in zip(expected, findings))
        if not good:
            print(f"self-test failed for {files}\n  expected {expected}\n  found {findings}", file=sys.stderr)
            return 1
    print(f"{len(cases)} made-up trees: each judged as expected")
    return 0


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    if len(arguments) > 1 or any(a.startswith("-") for a in arguments):
        print(__doc__, file=sys.stderr)
        return 2
    checker = Checker(arguments[0] if arguments else Path(__file__).resolve().parent.parent)
    findings = checker.run()
    print("\n".join(findings) if findings else f"{len(checker.includes)} files include only what they may")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
