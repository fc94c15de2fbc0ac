#include "ops/trusted_indices.h"

#include <utility>

namespace margay {
namespace {

constinit thread_local bool trusted = false;

}  // namespace

bool TrustedIndices::enabled() { return trusted; }

TrustedIndices::TrustedIndices() : outer_(std::exchange(trusted, true)) {}
TrustedIndices::~TrustedIndices() { trusted = outer_; }

}  // namespace margay
