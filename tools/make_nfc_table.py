#!/usr/bin/env python3
"""Writes tasks/tokenizer/nfc_table.cpp, the tables of Unicode normalisation form C, from Python's unicodedata.

    tools/make_nfc_table.py > tasks/tokenizer/nfc_table.cpp

Hangul syllables are left out: they follow from arithmetic. Before it prints, the tables are tried on every character.
"""

import sys
import unicodedata

WIDTH = 120
HANGUL = range(0xAC00, 0xD7A4)
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000 and code not in HANGUL]


def decompositions():
    """(character, first, second or 0, whether the two compose to it again), by character."""
    rows = []
    for code in CODES:
        parts = unicodedata.decomposition(chr(code)).split()
        if not parts or parts[0].startswith("<"):
            continue
        first, second = int(parts[0], 16), int(parts[1], 16) if len(parts) == 2 else 0
        composes = second != 0 and unicodedata.normalize("NFC", chr(code)) == chr(code)
        rows.append((code, first, second, composes))
    return rows


def classes():
    """(first, last, combining class) of runs of characters with a class other than 0."""
    runs = []
    for code in CODES:
        value = unicodedata.combining(chr(code))
        if value == 0:
            continue
        if runs and runs[-1][1] == code - 1 and runs[-1][2] == value:
            runs[-1][1] = code
        else:
            runs.append([code, code, value])
    return runs


def check(rows):
    """The tables must decompose every character as Python does."""
    pairs = {code: (first, second) for code, first, second, _ in rows}

    def full(code):
        if code not in pairs:
            return chr(code)
        first, second = pairs[code]
        return full(first) + (full(second) if second else "")

    for code in CODES:
        if full(code) != unicodedata.normalize("NFD", chr(code)):
            sys.exit(f"U+{code:04X} is not decomposed as it should be")


def entry(*values):
    return "{" + ",".join(f"{value:#x}" if value > 9 else str(value) for value in values) + "}"


def print_array(declaration, entries):
    print(f"{declaration} = {{")
    line = "   "
    for entry in entries:
        if len(line) + len(entry) + 2 > WIDTH:
            print(line)
            line = "   "
        line += f" {entry},"
    print(f"{line}\n}};")


def main():
    rows = decompositions()
    check(rows)
    print("// Made by tools/make_nfc_table.py; not to be edited.\n// clang-format off")
    print('#include "tasks/tokenizer/nfc_table.h"\n\nnamespace margay {\nnamespace {\n')
    print_array("constexpr Decomposition kDecompositions[]",
                [entry(code, first) if second == 0 else entry(code, first, second) if not composes else
                 entry(code, first, second, 1) for code, first, second, composes in rows])
    print()
    print_array("constexpr CombiningRun kCombiningRuns[]",
                [entry(*run) for run in classes()])
    print("\n}  // namespace\n")
    print(f'const std::string_view kUnicodeVersion = "{unicodedata.unidata_version}";')
    print("const std::span<const Decomposition> kNfcDecompositions = kDecompositions;")
    print("const std::span<const CombiningRun> kNfcCombiningRuns = kCombiningRuns;")
    print("\n}  // namespace margay")


if __name__ == "__main__":
    main()
