#!/usr/bin/env python3
"""Compares token ids and decoded text with the tokenizers package.

It trains tokenizers of several kinds with the package on local text (the King James text, Python's library, locales of
glibc), and compares the ids of `margay tokenizer encode` and the text of `margay tokenizer decode` on files, on hard
cases and on random text; then it lets `margay tokenizer train` learn vocabularies and wants those of the package. The
package is needed for nothing else.

    python3 -m venv build/peer-venv && build/peer-venv/bin/pip install tokenizers
    build/peer-venv/bin/python tools/check_tokenizers.py build/release/margay

Prints one line per tokenizer; exit 1 if any of them differs.
"""

import argparse
import glob
import json
import random
import subprocess
import sys
import sysconfig
import tempfile
import unicodedata
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

KJV = Path("data/kjv.txt")
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
        r"|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

HARD = {
    "empty": "",
    "spaces": " " * 1000 + "x" + " " * 77 + "\n" + " " * 30,
    "line ends": "a\r\nb\rc\n\n\n\r\n \t\n\t\t x\r\r\n  \r\n",
    "tabs": "\tif x:\n\t\treturn\t\t1\n" * 20,
    "code": "def f(x):\n    return {'a': [1, 22, 333, 4444], \"b\": x ** 2 != 0x1F}  # don't\n\n\n    y=f(1_000.5e-3)\n",
    "contractions": "I'll don't WE'RE he'd 'tis 'S'S''s can't've ʼs ’s I'ſ",
    "numbers": "1 12 123 1234 12345 3.14159 ½ Ⅷ ٣٤٥ 一二三 1,000,000 x2y",
    "emoji": "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷 ☺️ a👩‍🚀b 🫠",
    "combining": "e\u0301 a\u0323\u0302 \u0344 q\u0307\u0323 Å \u212b \u1e9b\u0323 Z\u0351\u036b\u0343A\u0300",
    "hangul": "\u1112\u1161\u11ab\u1100\u1173\u11af 한글 \u1100\u1161\u11a8\u11a8 가\u11a8 \ud55c",
    "CJK": "漢字かな交じり文。カタカナ、ﾊﾝｶｸ　全角スペース 中文字符，標點。豈\uf900",
    "Arabic": "السَّلامُ عَلَيْكُمْ ١٢٣ لا إله \u200fabc\u200e",
    "Indic": "नमस्ते दुनिया १२३ ক্ষ தமிழ் క్షమించండి",
    "Thai": "ภาษาไทยไม่มีช่องว่าง๑๒๓",
    "Hebrew": "שָׁלוֹם עֲלֵיכֶם שּׁ",
    "spaces of all kinds": "a\u00a0b\u2003c\u3000d\u180ee\u200bf\u2028g\u2029h\u0085i\u001cj\u205fk\ufeffl \u00a0 \u2003\n",
    "controls": "".join(map(chr, range(1, 128))) + "\x7f\x80\x9f",
    "special": "a<|endoftext|>b <|endoftext|> <|endoftext|><|endoftext|>\n<|endoftext|<|endoftext|>|> <|end",
    "added": "xADDy ADD ADD. lead  LSTRIP  LSTRIP\n RSTRIP \t\n z WORD WORDs sWORD WORD. (WORD)_WORD WORD_ éWORD",
    "long word": "a" * 5000 + "ab" * 3000 + " " + "é" * 2000,
    "mixed": "Ünïcödé—“quotes”…\u00ad—§¶•ªº №℡ ﬁ ﬂ ǆ ẞß İı ΑΩ Ёё\n",
    "private and rare": "\ue000\U000f0000 \U0001d400\U0001d7d8 \U00010400 \u2eff \ufffd \ufffe \u0378",
    "plain": "The quick brown fox jumps over the lazy dog. " * 50,
    "million": "a" * 1_000_000,
    "million spaces": " " * 1_000_000 + "x",
}

# The package takes its categories of characters from newer or older Unicode than PCRE2 and this Python do.
NEWER = {code for code in range(0x110000) if unicodedata.category(chr(code)) == "Cn"}


def random_texts(count):
    random.seed(7)
    pools = ["abc XYZ 019 .,!?'\"-_()[]{}\n\t", "éüßÅ\u0301\u0308\u0323ñ", "漢字仮名交じり", "אבגדה\u05b0\u05b1",
             "👍🏽👩‍🚀\u200d\ufe0f", "\u00a0\u2003\u3000\r\n  ", "ADD LSTRIP RSTRIP WORD <|endoftext|>", "0123456789٣½",
             "한글\u1112\u1161\u11ab", "'s 't 're 've 'm 'll 'd"]
    words = [word for pool in pools for word in pool.split(" ")]
    for _ in range(count):
        parts = []
        for _ in range(random.randint(1, 60)):
            pool = random.choice(pools)
            parts.append(random.choice(words) if random.random() < 0.2 else random.choice(pool))
        yield "".join(parts)


def every_character():
    """Each character between letters, digits, spaces and itself, where all sides agree that it is assigned."""
    text = []
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000 or code in NEWER:
            continue
        c = chr(code)
        text.append(f"a{c}1 {c}\n")
    return "".join(text)


def corpus():
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [KJV] if KJV.exists() else []
    files += sorted(library.glob("*.py"))[:60] + [Path(p) for p in sorted(glob.glob("/usr/share/i18n/locales/*"))[:80]]
    texts = []
    for file in files:
        try:
            texts.append(file.read_bytes().decode("utf-8"))
        except (UnicodeDecodeError, OSError):
            continue
    return texts


def new(pre_tokenizer, normalizer=None, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    return tokenizer


def byte_level(**options):
    return pre_tokenizers.ByteLevel(**({"add_prefix_space": False} | options))


def split(pattern, behavior="isolated", invert=False, more=()):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior, invert), *more,
                                    byte_level(use_regex=False)])


def train(tokenizer, texts, vocab=3000, alphabet=True, special=("<|endoftext|>",)):
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(special), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet else []))
    return tokenizer


def old_merges(text):
    """Merges spelled "a b", as older versions of the package wrote them."""
    file = json.loads(text)
    file["model"]["merges"] = [" ".join(pair) for pair in file["model"]["merges"]]
    return json.dumps(file)


def tokenizers_to_check(texts):
    sample = [text[:10_000] for text in texts]
    yield "GPT-2", train(new(byte_level()), sample)
    yield "GPT-2, 12000 tokens", train(new(byte_level()), texts[1:60], vocab=12000)
    neox = train(new(byte_level(), normalizers.NFC()), sample)
    neox.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    neox.post_processor = processors.ByteLevel(trim_offsets=True)
    yield "GPT-NeoX: NFC, runs of spaces as tokens", neox
    yield "cl100k's pattern, ignore_merges", train(new(split(CL100K), ignore_merges=True), sample)
    yield "Qwen's pattern, NFC", train(new(split(QWEN), normalizers.NFC()), sample)
    yield "o200k's pattern", train(new(split(O200K)), sample)
    three = (pre_tokenizers.Split(Regex(r"[一-龥぀-ゟ゠-ヿ]+"), "isolated"), pre_tokenizers.Split(Regex(CL100K), "isolated"))
    yield "three patterns in a row", train(new(split(r"\p{N}{1,3}", more=three)), sample)
    yield "single digits", train(new(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                              byte_level()])), sample)
    yield "runs of digits", train(new(pre_tokenizers.Sequence([pre_tokenizers.Digits(), byte_level()])), sample)
    yield "a space before each text", train(new(byte_level(add_prefix_space=True)), sample)
    yield "no pattern", train(new(byte_level(use_regex=False)), [text[:2000] for text in texts])
    for behavior in ("removed", "merged_with_previous", "merged_with_next", "contiguous"):
        yield f"split {behavior}", train(new(split(r"\s", behavior)), sample)
    yield "split removed, inverted", train(new(split(r"\w+|\d", "removed", invert=True)), sample)
    literal = pre_tokenizers.Sequence([pre_tokenizers.Split("the", "merged_with_next"), byte_level()])
    yield "split at a literal text", train(new(literal), sample)
    empty = split(r"(?=\d)")
    yield "split at empty matches", train(new(empty), sample)
    added = train(new(byte_level(), normalizers.NFC()), sample)
    added.add_tokens([AddedToken("ADD"), AddedToken("ADD."), AddedToken("LSTRIP", lstrip=True),
                      AddedToken("RSTRIP", rstrip=True), AddedToken("WORD", single_word=True),
                      AddedToken("\u1112\u1161\u11ab", normalized=True), AddedToken("漢字", normalized=False)])
    yield "added tokens of all kinds", added
    words = train(new(byte_level()), sample)
    words.add_special_tokens([AddedToken("WORD", single_word=True, lstrip=True, rstrip=True)])
    yield "a special token that is a word", words
    few = [text[:3000] for text in texts[:3]]
    yield "bytes without token", train(new(byte_level()), few, vocab=300, alphabet=False)
    for fuse in (False, True):
        yield (f"unknown bytes{', fused' if fuse else ''}",
               train(new(byte_level(), unk_token="<unk>", fuse_unk=fuse), few, vocab=300, alphabet=False,
                     special=("<unk>", "<|endoftext|>")))


def run(binary, *arguments):
    done = subprocess.run([binary, "tokenizer", *map(str, arguments)], capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"margay tokenizer {arguments[0]}: exit {done.returncode}: {done.stderr.decode().strip()}")
    return done.stdout


def check(binary, name, tokenizer, texts, folder, spelling):
    """How many texts differ."""
    path = folder / "tokenizer.json"
    path.write_text(spelling(tokenizer.to_str()), encoding="utf-8")
    files = []
    for i, text in enumerate(texts):
        files.append(folder / f"{i}.txt")
        files[-1].write_bytes(text.encode("utf-8"))
    lines = run(binary, "encode", *files, "--tokenizer", path, "--json").decode().splitlines()
    differ, tokens, decodable = [], 0, []
    for i, (text, line) in enumerate(zip(texts, lines, strict=True)):
        wanted = tokenizer.encode(text, add_special_tokens=False).ids
        got = json.loads(line)["ids"]
        tokens += len(got)
        if got == wanted:
            decodable.append((folder / f"{i}.ids", tokenizer.decode(wanted, skip_special_tokens=False)))
            decodable[-1][0].write_text(" ".join(map(str, got)), encoding="utf-8")
            continue
        place = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b), min(len(got), len(wanted)))
        differ.append(f"{text[:20]!r}: token {place} is {got[place:place + 4]}, not {wanted[place:place + 4]}, behind "
                      f"{tokenizer.decode(wanted[max(0, place - 8):place + 8], skip_special_tokens=False)!r}")

    def decode(paths):
        return run(binary, "decode", *paths, "--tokenizer", path).decode("utf-8", errors="replace")

    if decode([ids for ids, _ in decodable]) != "".join(text for _, text in decodable):
        for ids, wanted in decodable:
            got = decode([ids])
            if got != wanted:
                differ.append(f"decoded to {got[:60]!r}, not {wanted[:60]!r}")
    characters = sum(map(len, texts))
    print(f"{name:42} {len(texts):5} texts {characters / 1e6:6.1f} M characters {tokens / 1e6:6.1f} M tokens  "
          f"{'equal' if not differ else f'{len(differ)} DIFFER'}", flush=True)
    for difference in differ[:5]:
        print(f"    {difference}")
    return len(differ)


def check_training(binary, texts, vocab, min_count, folder):
    text = "\n".join(texts)
    (folder / "text.txt").write_bytes(text.encode("utf-8"))
    run(binary, "train", folder / "text.txt", "--vocab", vocab, "--min-count", min_count, "--out",
        folder / "trained.json", "--quiet")
    package = new(byte_level())
    package.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=vocab, min_frequency=min_count, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    own = json.loads((folder / "trained.json").read_text(encoding="utf-8"))
    loaded = Tokenizer.from_file(str(folder / "trained.json"))
    wanted = json.loads(package.to_str())
    same = own["model"]["vocab"] == wanted["model"]["vocab"] and own["model"]["merges"] == wanted["model"]["merges"]
    same_ids = loaded.encode(text[:100_000]).ids == package.encode(text[:100_000]).ids
    print(f"training, {len(text) / 1e6:.1f} M characters, {len(own['model']['vocab'])} tokens, pairs that occur "
          f"{min_count} times: {'the same vocabulary and merges' if same and same_ids else 'DIFFERS'}", flush=True)
    return 0 if same and same_ids else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("margay", help="the margay command")
    binary = parser.parse_args().margay
    print(f"tokenizers {tokenizers.__version__}")
    texts = corpus()
    samples = [text[:8_000] for text in texts]
    hard = list(HARD.values()) + list(random_texts(300))
    differ = 0
    for i, (name, tokenizer) in enumerate(tokenizers_to_check(texts)):
        with tempfile.TemporaryDirectory() as folder:
            # Without a pattern a text is one piece, which takes the package quadratic time.
            longest = 10_000_000 if i == 0 else 100_000
            tested = [text for text in hard + samples * (name != "no pattern") if len(text) < longest]
            if name in ("GPT-2", "split removed, inverted"):
                tested = tested + [every_character()]
            differ += check(binary, name, tokenizer, tested, Path(folder), old_merges if i % 2 else str)
    with tempfile.TemporaryDirectory() as folder:
        differ += check_training(binary, texts[:1], 4000, 2, Path(folder))
        differ += check_training(binary, texts[1:60], 12000, 2, Path(folder))
        differ += check_training(binary, [text[:5000] for text in texts], 3000, 1, Path(folder))
        differ += check_training(binary, list(HARD.values())[:-2], 1000, 1, Path(folder))
    print("all equal" if differ == 0 else f"{differ} DIFFER")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
