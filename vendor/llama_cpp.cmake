# Finds the ggml that llama-cpp-python brings, and defines llama_cpp::ggml_base.
#
# The pin: llama-cpp-python 0.3.36 (llama.cpp 0c1e570, ggml 0.25.3). No source of llama.cpp is kept here. Its wheel
# installs headers into site-packages/include and the libraries that really get loaded into site-packages/llama_cpp/lib.
#
# Only ggml-base is linked. Everything named llama_* is called through llama_cpp's own ctypes layer, so that one copy
# of each library is mapped into the process.

set(LOOM_LLAMA_CPP_PYTHON_VERSION "0.3.36")

# find_spec, not import: importing llama_cpp would load the libraries (and a GPU's driver) during a build.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
    "import importlib.metadata as m, importlib.util as u; print(m.version('llama_cpp_python')); print(u.find_spec('llama_cpp').submodule_search_locations[0])"
  OUTPUT_VARIABLE _llama_cpp_facts
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE _llama_cpp_status)
if(NOT _llama_cpp_status EQUAL 0)
  message(FATAL_ERROR
    "llama-cpp-python is not installed for ${Python_EXECUTABLE}. "
    "Run: pip install llama-cpp-python==${LOOM_LLAMA_CPP_PYTHON_VERSION}")
endif()
string(REPLACE "\n" ";" _llama_cpp_facts "${_llama_cpp_facts}")
list(GET _llama_cpp_facts 0 _llama_cpp_version)
list(GET _llama_cpp_facts 1 LLAMA_CPP_DIR)
if(NOT _llama_cpp_version VERSION_EQUAL LOOM_LLAMA_CPP_PYTHON_VERSION)
  message(FATAL_ERROR
    "llama-cpp-python ${_llama_cpp_version} is installed, but loom_gguf is written for "
    "${LOOM_LLAMA_CPP_PYTHON_VERSION}: ggml promises no binary interface from one version to the next. "
    "Run: pip install llama-cpp-python==${LOOM_LLAMA_CPP_PYTHON_VERSION}")
endif()

find_library(LOOM_GGML_BASE_LIBRARY ggml-base PATHS "${LLAMA_CPP_DIR}/lib" NO_DEFAULT_PATH REQUIRED)
find_path(LOOM_GGML_INCLUDE_DIR ggml.h PATHS "${LLAMA_CPP_DIR}/../include" NO_DEFAULT_PATH REQUIRED)
set(LOOM_GGML_LIBRARY_DIR "${LLAMA_CPP_DIR}/lib")

add_library(llama_cpp::ggml_base SHARED IMPORTED)
set_target_properties(llama_cpp::ggml_base PROPERTIES
  IMPORTED_LOCATION "${LOOM_GGML_BASE_LIBRARY}"
  INTERFACE_INCLUDE_DIRECTORIES "${LOOM_GGML_INCLUDE_DIR}")

# The version compiled in, for the check at import. The ggml of the wheel says it only in its package file.
file(STRINGS "${LLAMA_CPP_DIR}/../lib/cmake/ggml/ggml-config-version.cmake" _ggml_version_line
  REGEX "set\\(PACKAGE_VERSION " LIMIT_COUNT 1)
string(REGEX REPLACE ".*\"([0-9.]+)\".*" "\\1" LOOM_GGML_VERSION "${_ggml_version_line}")
target_compile_definitions(llama_cpp::ggml_base INTERFACE
  LOOM_GGML_VERSION="${LOOM_GGML_VERSION}"
  LOOM_LLAMA_CPP_PYTHON_VERSION="${LOOM_LLAMA_CPP_PYTHON_VERSION}")
