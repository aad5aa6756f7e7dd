// The formulas by hand sums, and the index helpers beyond 2^31 elements.

#include <sys/mman.h>

#include <cmath>
#include <iostream>

#include "check.h"
#include "math/index.h"
#include "math/path.h"
#include "math/rescale.h"
#include "math/samples.h"

namespace {

constexpr int64_t kBeyond = (int64_t{1} << 31) + 5;

void formulas() {
  CHECK_THAT(fusum::path_point(2.0, 4.0, 0.25) == 3.0);
  CHECK_THAT(fusum::path_sum(1.0, 0.5, 6.0) == 4.0);
  CHECK_THAT(fusum::times_change(3.0, 5.0, 1.0) == 12.0);
  CHECK_THAT(fusum::random_point(8.0, 4.0, 0.75) == 7.0);
  CHECK_THAT(fusum::noisy_copy(1.0, 2.0, -3.0) == -5.0);
  CHECK_THAT(fusum::first_moment(10.0, -4.0) == 6.0);
  CHECK_THAT(fusum::second_moment(10.0, -4.0) == 26.0);
}

void rescaling() {
  const fusum::Tolerance<double> tolerance{0.5, 0.25};
  CHECK_THAT(fusum::near(1.5, 1.0, tolerance) && !fusum::near(1.75, 1.0, tolerance));  // absolute
  CHECK_THAT(fusum::near(8.0, 6.0, tolerance) && !fusum::near(8.0, 5.0, tolerance));   // relative
  CHECK_THAT(fusum::rescale(2.0, 5.0, 1.0, 9.0, 3.0, 100.0, tolerance) == 3.0);
  CHECK_THAT(fusum::rescale(2.0, 5.0, 4.5, 9.0, 3.0, 100.0, tolerance) == 200.0);
  CHECK_THAT(fusum::rescale_relu(2.0, 3.0, -1.0, tolerance) == 1.5);
  CHECK_THAT(fusum::rescale_relu(2.0, -3.0, -3.0, tolerance) == 0.0);
  CHECK_THAT(std::isnan(fusum::rescale_relu(2.0, -1.0, std::nan(""), tolerance)));
}

void steps_beyond_32_bits() {
  const fusum::Steps repeats{1, {kBeyond}, {0}};
  const fusum::Steps pairs{3, {70'000, 5, 70'000}, {1, 0, 70'000}};  // [P, 1, F] against [P, B, F]
  const fusum::Steps most{4, {2, 3, 5, 70'000}, {1, 20, 4, 100'000}};
  CHECK_THAT(repeats.at(kBeyond - 1) == 0);
  CHECK_THAT(pairs.at((int64_t{69'999} * 5 + 4) * 70'000 + 11) == int64_t{69'999} * 70'000 + 11);
  CHECK_THAT(most.at(((int64_t{69'999} * 5 + 4) * 3 + 2) * 2 + 1) == int64_t{69'999} * 100'000 + 16 + 40 + 1);
}

void places_beyond_32_bits() {
  CHECK_THAT(fusum::offset_of(3'000'000'000, 7) == 21'000'000'000);
  CHECK_THAT(fusum::offset_of(70'000, 70'000) == 4'900'000'000);
  CHECK_THAT(fusum::example_of(/*row=*/kBeyond, /*start=*/kBeyond, /*samples=*/2) == kBeyond);
}

void rows_of_an_example() {
  auto is = [](fusum::Rows rows, int64_t first, int64_t last) { return rows.first == first && rows.last == last; };
  CHECK_THAT(is(fusum::rows_of(/*example=*/2, /*start=*/0, /*samples=*/3, /*count=*/100), 6, 9));
  CHECK_THAT(is(fusum::rows_of(2, /*start=*/7, 3, 100), 0, 2));  // its first row came in the call before
  CHECK_THAT(is(fusum::rows_of(2, 0, 3, /*count=*/8), 6, 8));    // its last row comes in the next call
  CHECK_THAT(is(fusum::rows_of(kBeyond, 0, 4, 8 * kBeyond), 4 * kBeyond, 4 * kBeyond + 4));
  for (int64_t row = 0; row < 40; ++row) {  // the two directions agree
    const auto rows = fusum::rows_of(fusum::example_of(row, /*start=*/5, /*samples=*/3), 5, 3, 40);
    CHECK_THAT(rows.first <= row && row < rows.last);
  }
}

// Address space of more than 2^31 elements; the system gives memory only to the pages that are touched.
void baselines_beyond_32_bits() {
  constexpr int64_t kColumns = 1 << 16;
  constexpr int64_t kBytes = kBeyond + kColumns;
  void* mapped = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK_THAT(mapped != MAP_FAILED);
  auto* data = static_cast<int8_t*>(mapped);
  data[kBeyond] = 42;
  const int64_t index[] = {0, kBeyond / kColumns};
  const fusum::BaseRows<int8_t> a_row_each{data, nullptr, kColumns, 1};
  const fusum::BaseRows<int8_t> picked{data, index, kColumns, 1};
  const fusum::BaseRows<int8_t> one_row{data, nullptr, 0, 1};
  const fusum::BaseRows<int8_t> scalar{data + kBeyond, nullptr, 0, 0};
  CHECK_THAT(*a_row_each.at(kBeyond / kColumns, kBeyond % kColumns) == 42);
  CHECK_THAT(*picked.at(1, kBeyond % kColumns) == 42);
  CHECK_THAT(*picked.at(0, kBeyond % kColumns) == 0);
  CHECK_THAT(*one_row.at(/*row=*/12345, /*element=*/kBeyond) == 42);
  CHECK_THAT(*scalar.at(kBeyond, kBeyond) == 42);
  munmap(mapped, kBytes);
}

}  // namespace

int main() {
  formulas();
  rescaling();
  places_beyond_32_bits();
  steps_beyond_32_bits();
  rows_of_an_example();
  baselines_beyond_32_bits();
  std::cout << "formulas and 64-bit places: right\n";
  return 0;
}
