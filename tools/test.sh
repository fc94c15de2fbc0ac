#!/usr/bin/env bash
# Sets the machine up, builds preset release and runs the whole test suite. Arguments go to ctest.
# shellcheck source-path=SCRIPTDIR source=setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

set_up all
say 'Running the tests'
ctest --preset release --parallel "$(nproc)" "$@"
