# How the folders become one library, the command and the tests.

include(CheckCXXCompilerFlag)
include(CheckCXXSourceCompiles)
include(CheckLanguage)

find_package(fmt REQUIRED)

# ---- Options shared by all code of the project -------------------------------------------------------------------
add_library(margay_options INTERFACE)
target_compile_features(margay_options INTERFACE cxx_std_20)
target_include_directories(margay_options INTERFACE ${PROJECT_SOURCE_DIR})
target_link_libraries(margay_options INTERFACE fmt::fmt)
target_compile_options(margay_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wno-psabi
                                                  -fno-math-errno>)
# GCC 12 can lose track of the stack when 64-byte vectors are passed by value on a CPU without such registers: each call
# then leaks 64 bytes of it. With the argument area reserved once per function there is nothing to lose.
check_cxx_compiler_flag(-maccumulate-outgoing-args MARGAY_HAS_ACCUMULATE_OUTGOING_ARGS)
if(MARGAY_HAS_ACCUMULATE_OUTGOING_ARGS AND NOT CMAKE_CXX_CLANG_TIDY)
  target_compile_options(margay_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-maccumulate-outgoing-args>)
endif()
if(MARGAY_WERROR)
  target_compile_options(margay_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>
                                                  $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
if(MARGAY_SANITIZE)
  target_compile_options(margay_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${MARGAY_SANITIZE}
                                                  -fno-omit-frame-pointer -fno-sanitize-recover=all>)
  target_link_options(margay_options INTERFACE -fsanitize=${MARGAY_SANITIZE})
endif()
if(MARGAY_NATIVE)
  target_compile_options(margay_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
  set(CMAKE_REQUIRED_FLAGS -march=native)
  check_cxx_source_compiles("
    #ifndef __AVX512F__
    #error no AVX-512
    #endif
    int main() {}" MARGAY_CPU_HAS_AVX512)
  unset(CMAKE_REQUIRED_FLAGS)
  if(MARGAY_CPU_HAS_AVX512)  # -march=native alone may settle for 256-bit vectors
    target_compile_options(margay_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-mprefer-vector-width=512>)
  endif()
endif()
if(MARGAY_TOOLS OR MARGAY_TESTS)
  target_compile_definitions(margay_options INTERFACE MARGAY_OP_SAMPLES=1)
endif()
if(MARGAY_THREADS)
  find_package(Threads REQUIRED)
  target_link_libraries(margay_options INTERFACE Threads::Threads)
endif()

# ---- BLAS ------------------------------------------------------------------------------------------------------
add_library(margay_blas INTERFACE)
find_path(MARGAY_EIGEN_DIR Eigen/Core PATH_SUFFIXES eigen3 REQUIRED)
target_include_directories(margay_blas SYSTEM INTERFACE ${MARGAY_EIGEN_DIR})
target_compile_definitions(margay_blas INTERFACE EIGEN_DONT_PARALLELIZE)
if(NOT MARGAY_BLAS STREQUAL "eigen")
  # Debian keeps headers and libraries of each variant in a folder of its own, linked only where alternatives run.
  find_path(MARGAY_OPENBLAS_INCLUDE cblas.h
            PATH_SUFFIXES openblas openblas-pthread x86_64-linux-gnu/openblas-pthread aarch64-linux-gnu/openblas-pthread)
  find_library(MARGAY_OPENBLAS_LIBRARY NAMES openblas
               PATH_SUFFIXES openblas-pthread x86_64-linux-gnu/openblas-pthread aarch64-linux-gnu/openblas-pthread)
  if(MARGAY_OPENBLAS_INCLUDE AND MARGAY_OPENBLAS_LIBRARY)
    target_include_directories(margay_blas SYSTEM INTERFACE ${MARGAY_OPENBLAS_INCLUDE})
    target_link_libraries(margay_blas INTERFACE ${MARGAY_OPENBLAS_LIBRARY})
    target_compile_definitions(margay_blas INTERFACE MARGAY_OPENBLAS=1)
    set(MARGAY_BLAS_FOUND openblas)
  elseif(MARGAY_BLAS STREQUAL "openblas")
    message(FATAL_ERROR "MARGAY_BLAS=openblas, but OpenBLAS was not found (Debian: libopenblas-pthread-dev)")
  endif()
endif()
if(NOT MARGAY_BLAS_FOUND)
  set(MARGAY_BLAS_FOUND eigen)
endif()
message(STATUS "Margay: matrix products by ${MARGAY_BLAS_FOUND}")

# ---- PCRE2 -----------------------------------------------------------------------------------------------------
add_library(margay_pcre2 INTERFACE)
set(MARGAY_WITH_PCRE2 OFF)
if(NOT MARGAY_PCRE2 STREQUAL "off" AND NOT MARGAY_PCRE2 STREQUAL "OFF")
  find_path(MARGAY_PCRE2_INCLUDE pcre2.h)
  find_library(MARGAY_PCRE2_LIBRARY NAMES pcre2-8)
  if(MARGAY_PCRE2_INCLUDE AND MARGAY_PCRE2_LIBRARY)
    set(MARGAY_WITH_PCRE2 ON)
    target_include_directories(margay_pcre2 SYSTEM INTERFACE ${MARGAY_PCRE2_INCLUDE})
    target_link_libraries(margay_pcre2 INTERFACE ${MARGAY_PCRE2_LIBRARY})
  elseif(NOT MARGAY_PCRE2 STREQUAL "auto")
    message(FATAL_ERROR "MARGAY_PCRE2=${MARGAY_PCRE2}, but PCRE2 was not found (Debian: libpcre2-dev)")
  endif()
endif()
if(MARGAY_WITH_PCRE2)
  message(STATUS "Margay: tokenizers of bytes and of tokenizer.json files")
else()
  message(STATUS "Margay: tokenizers of bytes only, for want of PCRE2")
endif()

# ---- CUDA ------------------------------------------------------------------------------------------------------
# Only the engine and the ops know which backends there are: the rest compiles the same with and without CUDA.
add_library(margay_cuda INTERFACE)
set(MARGAY_WITH_CUDA OFF)
set(MARGAY_CUDA_EMULATED OFF)
if(MARGAY_CUDA STREQUAL "emulated")
  set(MARGAY_WITH_CUDA ON)
  set(MARGAY_CUDA_EMULATED ON)
elseif(NOT MARGAY_CUDA STREQUAL "off" AND NOT MARGAY_CUDA STREQUAL "OFF")
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
  endif()
  if(MARGAY_CUDA STREQUAL "auto")
    if(EXISTS /dev/nvidiactl)
      check_language(CUDA)
      if(CMAKE_CUDA_COMPILER)
        set(MARGAY_WITH_CUDA ON)
      endif()
    endif()
  else()
    set(MARGAY_WITH_CUDA ON)
  endif()
endif()
if(MARGAY_CUDA_EMULATED)
  add_library(margay_cuda_emulator STATIC ${PROJECT_SOURCE_DIR}/tests/cuda_emulator/executor.cpp)
  target_link_libraries(margay_cuda_emulator PRIVATE margay_options)
  target_compile_definitions(margay_cuda INTERFACE MARGAY_CUDA=1)
  target_link_libraries(margay_cuda INTERFACE margay_cuda_emulator)
  message(STATUS "Margay: CUDA on an emulated GPU, for tests")
elseif(MARGAY_WITH_CUDA)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit 12 REQUIRED)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  # The standard as an option: CMake 3.25.1 does not know yet that nvcc takes C++20. fmt 9 believes that it has no constexpr.
  target_compile_options(margay_options INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 --expt-relaxed-constexpr
                                                  -DFMT_USE_CONSTEXPR=1
                                                  -Xcompiler=-Wall,-Wextra>)
  target_compile_definitions(margay_cuda INTERFACE MARGAY_CUDA=1)
  target_link_libraries(margay_cuda INTERFACE CUDA::cudart_static)
  message(STATUS "Margay: CUDA ${CUDAToolkit_VERSION}")
else()
  message(STATUS "Margay: CPU only")
endif()

# ---- Folders ---------------------------------------------------------------------------------------------------
set_property(GLOBAL PROPERTY MARGAY_LIBRARIES "")

# One folder of the library. Kept as objects, so that ops which register themselves are never dropped by the linker.
function(margay_object_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PRIVATE_LIBRARIES" ${ARGN})
  add_library(${name} OBJECT ${ARG_SOURCES})
  if(MARGAY_CUDA_EMULATED)
    list(FILTER ARG_SOURCES INCLUDE REGEX "\\.cu$")
    set_source_files_properties(${ARG_SOURCES} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++;-Wno-unknown-pragmas;-isystem;${PROJECT_SOURCE_DIR}/tests/cuda_emulator")
  endif()
  target_link_libraries(${name} PUBLIC margay_options PRIVATE ${ARG_PRIVATE_LIBRARIES})
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  set_property(GLOBAL APPEND PROPERTY MARGAY_LIBRARIES ${name})
endfunction()

# libmargay.a: the same objects in one archive, for programs that embed the engine.
function(margay_static_library)
  get_property(libraries GLOBAL PROPERTY MARGAY_LIBRARIES)
  list(TRANSFORM libraries REPLACE "(.+)" "$<TARGET_OBJECTS:\\1>" OUTPUT_VARIABLE objects)
  add_library(margay STATIC ${objects})
  target_link_libraries(margay PUBLIC margay_options margay_blas margay_pcre2 margay_cuda)
  set_target_properties(margay PROPERTIES LINKER_LANGUAGE CXX)
endfunction()

# Links all objects of the library into a program of this project.
function(margay_link_whole target)
  get_property(libraries GLOBAL PROPERTY MARGAY_LIBRARIES)
  target_link_libraries(${target} PRIVATE ${libraries} margay_blas margay_pcre2 $<LINK_ONLY:margay_cuda>)
endfunction()
