#include "models/init.h"

namespace margay::init {

Initializer constant(double value) {
  return [value](RandomStream&, int64_t) { return value; };
}

Initializer normal(double std) {
  return [std](RandomStream& random, int64_t) { return std * random.normal(); };
}

Initializer uniform(double bound) {
  return [bound](RandomStream& random, int64_t) { return bound * (2 * random.uniform64() - 1); };
}

Initializer identity_filter(int64_t width, double std) {
  return [width, std](RandomStream& random, int64_t index) {
    return (index % width == 0 ? 1.0 : 0.0) + std * random.normal();
  };
}

}  // namespace margay::init
