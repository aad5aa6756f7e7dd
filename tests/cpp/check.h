#pragma once

#include <cstdlib>
#include <iostream>

// Ends the test program with a message; unlike assert, also in release builds.
#define CHECK_THAT(condition)                                                           \
  do {                                                                                  \
    if (!(condition)) {                                                                 \
      std::cerr << __FILE__ << ":" << __LINE__ << ": not true: " << #condition << "\n"; \
      std::exit(1);                                                                     \
    }                                                                                   \
  } while (false)
