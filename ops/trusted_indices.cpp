#include "ops/trusted_indices.h"

namespace margay {
namespace {

constinit thread_local bool trusted = false;

}  // namespace

bool TrustedIndices::enabled() { return trusted; }

TrustedIndices::TrustedIndices() : scope_(trusted, true) {}

}  // namespace margay
