// Makes the library a Python extension module; loading it registers the ops.
#include <Python.h>

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", "The compiled kernels of fusum.", -1, nullptr};
  return PyModule_Create(&module);
}
