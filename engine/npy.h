#pragma once
#include <string>

#include "engine/tensor.h"

namespace margay {

/// Reads one array from a NumPy .npy file (format 1.0, 2.0 or 3.0), mapped. Little-endian f4, f8, i4, i8 and b1 become
/// f32, f64, i32, i64 and bool; i1, u1, i2 and u2 become i32, and u4 becomes i64, since tensors have no such dtypes.
/// Fortran order is turned into row-major. Throws DataError naming the file where anything else is wrong: other dtypes
/// (objects above all: they would be code), a header that is not exactly what NumPy writes, or a file that is longer or
/// shorter than its shape says.
Tensor load_npy(const std::string& path, Device device = {});

/// What an .npy file (format 1.0) starts with; its elements follow in row-major order, little-endian. For arrays that
/// are written piece by piece. Throws OpError for bf16, which NumPy does not know.
std::string npy_header(DType dtype, const Shape& shape);

/// Writes a tensor as .npy, format 1.0, replacing the file atomically (see write_file_atomically). Throws OpError for
/// bf16, which NumPy does not know, and for an undefined tensor.
void save_npy(const std::string& path, const Tensor& tensor);

}  // namespace margay
