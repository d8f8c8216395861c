# Warnings, sanitizers and the one function that declares a layer.

add_library(agglo_flags INTERFACE)
target_include_directories(agglo_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_definitions(agglo_flags INTERFACE _GNU_SOURCE)
# Floating point is never contracted unless a file asks for it: boxes and metrics must agree on every machine.
target_compile_options(agglo_flags INTERFACE $<$<COMPILE_LANGUAGE:C>:-ffp-contract=off;-fno-math-errno>)
target_compile_options(
  agglo_flags
  INTERFACE $<$<COMPILE_LANGUAGE:C>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wconversion;-Wstrict-prototypes;-Wmissing-prototypes;-Wundef;-Wvla;-Wformat=2;-Wwrite-strings;-Wpointer-arith;-Wimplicit-fallthrough>
)
if(AGGLO_SANITIZE)
  target_compile_options(
    agglo_flags
    INTERFACE $<$<COMPILE_LANGUAGE:C>:-fsanitize=${AGGLO_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all>)
  target_link_options(agglo_flags INTERFACE -fsanitize=${AGGLO_SANITIZE})
  if(CMAKE_C_COMPILER_ID MATCHES Clang) # instrumented loops do not vectorise, and need not
    target_compile_options(agglo_flags INTERFACE $<$<COMPILE_LANGUAGE:C>:-Wno-pass-failed>)
  endif()
endif()
if(AGGLO_FUZZ)
  if(NOT CMAKE_C_COMPILER_ID MATCHES Clang)
    message(FATAL_ERROR "AGGLO_FUZZ needs clang (libFuzzer); found ${CMAKE_C_COMPILER_ID}. Use the preset 'fuzz'.")
  endif()
  target_compile_options(agglo_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# agglo_module(NAME SOURCES file... [DEPS layer-or-library...])
# A static library agglo_NAME; DEPS are linked publicly, so that the links mirror the arrows between the layers.
function(agglo_module name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(agglo_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(agglo_${name} PUBLIC agglo_flags ${ARG_DEPS})
endfunction()

# agglo_test(NAME SOURCES file... LABELS label... [DEPS layer-or-library...] [TIMEOUT seconds])
# One cmocka program per area, run from the root of the source tree. Exit status 77 means skipped, with the reason printed.
function(agglo_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LABELS;DEPS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} agglo_test_support agglo_flags PkgConfig::cmocka)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" SKIP_RETURN_CODE 77 TIMEOUT ${ARG_TIMEOUT})
endfunction()

# agglo_fuzz(NAME SOURCES file... CORPUS directory [DEPS layer-or-library...])
# Under AGGLO_FUZZ a libFuzzer program; always a replay of the corpus as an ordinary test.
function(agglo_fuzz name)
  cmake_parse_arguments(ARG "" "CORPUS" "SOURCES;DEPS" ${ARGN})
  add_executable(${name}_replay ${ARG_SOURCES} ${PROJECT_SOURCE_DIR}/tests/fuzz/replay.c)
  target_link_libraries(${name}_replay PRIVATE ${ARG_DEPS} agglo_flags)
  add_test(NAME ${name}_replay COMMAND ${name}_replay ${ARG_CORPUS} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name}_replay PROPERTIES LABELS "fuzz" TIMEOUT 300)
  if(AGGLO_FUZZ)
    add_executable(${name} ${ARG_SOURCES})
    target_link_libraries(${name} PRIVATE ${ARG_DEPS} agglo_flags)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  endif()
endfunction()
