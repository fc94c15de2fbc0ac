#pragma once
#include "engine/tensor.h"

namespace margay {

/// Features of the positions t = 0 ... length - 1 from which a network makes a long filter, [length, embed]:
/// t / (length - 1), then the real and then the imaginary parts of e^(-2 pi i f t / length) for (embed - 1) / 2
/// frequencies f spaced evenly from 1e-4 to (embed - 1) / 2 - 1. Poli et al. 2023, "Hyena Hierarchy",
/// arXiv:2302.10866, appendix D.3.
Tensor position_features(int64_t length, int64_t embed, DType dtype, Device device);

/// n values spaced evenly from `first` to `last`, which n = 1 leaves out.
std::vector<double> evenly_spaced(double first, double last, int64_t n);

}  // namespace margay
