#!/usr/bin/env bash
# Builds text corpora of Debian packages, for language models: the King James Bible, the documentation of the Linux kernel
# and of Python, and WordNet's glosses. Packages are downloaded and unpacked, never installed.
#
#   tools/corpora.sh [NAME ...]     kjv linux-doc python-doc wordnet; all of them without a name
#
# Each corpus is a folder data/corpora/NAME with a text file for each document, which `margay prepare` takes as it is.
# data/corpora/NAME.log tells package, version, digests and sizes. A corpus that is there is left alone: delete its folder
# to build it again.
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

readonly CORPORA=data/corpora
readonly NAMES=(kjv linux-doc python-doc wordnet)

# fetch PACKAGE FOLDER: downloads a package, unpacks it into a folder, and logs what it was.
fetch() {
  local package=$1 folder=$2 file
  mkdir -p "$folder"
  chmod 755 "$folder"
  (cd "$folder" && apt-get -qq download "$package" 2>download.log) || {
    cat "$folder/download.log" >&2
    die "apt-get could not download $package" 'Its lists may be old: apt-get update'
  }
  file=$(find "$folder" -maxdepth 1 -name '*.deb' -print -quit)
  [[ $file ]] || die "apt-get downloaded no file of $package"
  dpkg -x "$file" "$folder/root" || die "$file cannot be unpacked"
  printf 'package %s\nversion %s\nfile %s\nsha256 %s\n' "$package" "$(dpkg-deb -f "$file" Version)" "${file##*/}" \
    "$(sha256 "$file")"
  rm "$file"
}

sha256() { sha256sum "$1" | cut -d ' ' -f 1; }

# The text is printed by the package's own program, from its data, without installing either.
build_kjv() {
  local work=$1 out=$2
  fetch bible-kjv "$work/program"
  fetch bible-kjv-text "$work/text"
  (cd "$work/text/root/usr/lib" && "$work/program/root/usr/bin/bible" -p "$work/text/root/usr/lib" -f gen1:1-rev22:21 \
    </dev/null) >"$out/kjv.txt" 2>/dev/null || die "the program of bible-kjv does not print the text"
}

build_linux-doc() {
  local work=$1 out=$2 file name
  fetch linux-doc-6.1 "$work/package"
  while IFS= read -r -d '' file; do
    name=${file#"$work/package/root/usr/share/doc/"}
    name=${name#*/Documentation/}
    name=${name%.gz}
    mkdir -p "$out/$(dirname "$name")"
    case $file in
      *.gz) gzip -dc "$file" ;;
      *) cat "$file" ;;
    esac >"$out/$name"
  done < <(find "$work/package/root" -type f \( -name '*.rst.gz' -o -name '*.rst' \) -path '*/Documentation/*' -print0)
}

# Info files: menus and tables of nodes are left in, control characters between nodes become line ends.
build_python-doc() {
  local work=$1 out=$2 file name
  fetch python3.11-doc "$work/package"
  while IFS= read -r -d '' file; do
    name=${file##*/}
    gzip -dc "$file" | tr '\037\177' '\n' | tr -d '\000' >"$out/${name%.gz}.txt"
  done < <(find "$work/package/root/usr/share/info" -type f -name '*.info*.gz' -print0)
}

# The glosses behind the " | " of each synset, a line each.
build_wordnet() {
  local work=$1 out=$2 part
  fetch wordnet-base "$work/package"
  for part in noun verb adj adv; do
    sed -n 's/^[0-9].* | //p' "$work/package/root/usr/share/wordnet/data.$part" >"$out/$part.txt"
  done
}

# build NAME: a corpus, in another folder until all of it is there.
build() {
  local name=$1 work bytes documents
  if [[ -d $CORPORA/$name ]]; then
    say "$CORPORA/$name is there already"
    return 0
  fi
  say "Building $CORPORA/$name"
  work=$(mktemp -d "$REPO_ROOT/$CORPORA/.$name.XXXXXX")
  mkdir "$work/out"
  "build_$name" "$work" "$work/out" >"$work/log"
  find "$work/out" -type f -empty -delete
  bytes=$(find "$work/out" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }')
  documents=$(find "$work/out" -type f | wc -l)
  ((bytes > 1000000)) || die "the corpus $name has only $bytes bytes: its packages are not laid out as expected"
  {
    cat "$work/log"
    printf 'documents %d\nbytes %d\n' "$documents" "$bytes"
    (cd "$work/out" && find . -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum |
      sed 's/ .*//; s/^/sha256-of-documents /'
  } >"$CORPORA/$name.log"
  mv "$work/out" "$CORPORA/$name"
  rm -r "$work"
  cat "$CORPORA/$name.log"
}

cd "$REPO_ROOT"
is_debian || die 'this is neither Debian nor made from it; the texts come from Debian packages.'
for name in "$@"; do
  [[ " ${NAMES[*]} " == *" $name "* ]] || die "unknown corpus $name; there are: ${NAMES[*]}"
done
mkdir -p "$CORPORA"
rm -rf "$CORPORA"/.[a-z]*  # what a stopped run has left
for name in "${@:-${NAMES[@]}}"; do build "$name"; done
say "All texts: $(find "$CORPORA" -type f ! -name '*.log' -printf '%s\n' | awk '{ sum += $1 } END { print sum }') bytes"
