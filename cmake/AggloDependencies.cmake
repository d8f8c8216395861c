# Libraries, all from Debian 12 (script/setup installs them). A missing one ends the configuration with its name.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

# Debian's dnnl-config.cmake asks for OpenCL's headers, which a CPU user does not need: find the library itself.
find_path(DNNL_INCLUDE_DIR oneapi/dnnl/dnnl.h REQUIRED)
find_library(DNNL_LIBRARY dnnl REQUIRED)
add_library(agglo_dnnl INTERFACE)
target_include_directories(agglo_dnnl SYSTEM INTERFACE ${DNNL_INCLUDE_DIR})
target_link_libraries(agglo_dnnl INTERFACE ${DNNL_LIBRARY})

foreach(entry IN ITEMS
    "jansson jansson" "yaml yaml-0.1" "xxhash libxxhash" "crypto libcrypto" "archive libarchive" "zlib zlib" "zstd libzstd" "jpeg libjpeg"
    "webp libwebp" "webpdemux libwebpdemux" "lmdb lmdb" "lapacke lapacke")
  separate_arguments(entry)
  list(GET entry 0 name)
  list(GET entry 1 module)
  pkg_check_modules(${name} REQUIRED IMPORTED_TARGET GLOBAL ${module})
endforeach()

# libspng ships two pkg-config names, by version
pkg_search_module(spng REQUIRED IMPORTED_TARGET GLOBAL libspng spng)

if(AGGLO_TESTS)
  pkg_check_modules(cmocka REQUIRED IMPORTED_TARGET GLOBAL cmocka)
endif()
