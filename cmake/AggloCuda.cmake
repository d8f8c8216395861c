# The CUDA toolkit, asked for by AGGLO_CUDA. Machine code for Ampere and Hopper, PTX for what comes later.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual CACHE STRING "GPU architectures")
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "AGGLO_CUDA needs the CUDA toolkit and its compiler: nvcc was not found. Put it on PATH, or set CMAKE_CUDA_COMPILER.")
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
find_package(CUDAToolkit 13 REQUIRED)
if(NOT TARGET CUDA::cublasLt)
  message(FATAL_ERROR "AGGLO_CUDA needs cuBLASLt, which the CUDA toolkit in ${CUDAToolkit_ROOT_DIR} does not have.")
endif()

# cuDNN's headers, optional: attention in BF16. The library is loaded at run time. SDPA backward is in its interface since 9.17.
find_path(AGGLO_CUDNN_INCLUDE cudnn_version.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
mark_as_advanced(AGGLO_CUDNN_INCLUDE)
if(AGGLO_CUDNN_INCLUDE)
  foreach(part IN ITEMS MAJOR MINOR)
    file(STRINGS ${AGGLO_CUDNN_INCLUDE}/cudnn_version.h line REGEX "^#define CUDNN_${part} ")
    string(REGEX MATCH "[0-9]+" cudnn_${part} "${line}")
  endforeach()
  if("${cudnn_MAJOR}.${cudnn_MINOR}" VERSION_LESS 9.17 OR NOT cudnn_MAJOR EQUAL 9)
    message(STATUS "cuDNN ${cudnn_MAJOR}.${cudnn_MINOR} is not 9.17 or a later 9: attention in BF16 by own kernels alone")
    set(AGGLO_CUDNN_INCLUDE "")
  else()
    message(STATUS "cuDNN ${cudnn_MAJOR}.${cudnn_MINOR}: attention in BF16, loaded at run time")
  endif()
else()
  message(STATUS "no cuDNN: attention in BF16 by own kernels alone")
endif()

# The host compiler sees nvcc's own glue code too, which -Wpedantic and -Wconversion would complain about.
target_compile_options(
  agglo_flags
  INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xcompiler=-Wall,-Wextra,-Wshadow,-Wundef,-Wformat=2,-Wwrite-strings,-ffp-contract=off>"
)
