#pragma once

/// Marks a function that both the CPU and the GPU compiler turn into code.
#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif
