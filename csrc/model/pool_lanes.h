// How max-pools go through LANES planes at once, a number of each in one register: included by pool.cpp for each width
// of registers, in a namespace and with the compiler's target set for it. So it has no guard.

typedef float Numbers __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Places __attribute__((vector_size(LANES * sizeof(int32_t))));

// A row of all planes, number by number.
inline void read_row(const float* from, int64_t area, int64_t count, int64_t width, float* to) {
  for (int64_t column = 0; column < width; ++column) {
    for (int64_t lane = 0; lane < LANES; ++lane) {
      to[column * LANES + lane] = from[std::min(lane, count - 1) * area + column];
    }
  }
}

// What is largest in one window, or the last that is no number, as torch has it; and where.
inline void take_largest(const Pool& pool, const Scratch& scratch, int64_t window, int64_t column_window) {
  const Windows& rows = pool.rows;
  const Windows& columns = pool.columns;
  const int64_t first_row = rows.start(window);
  const int64_t first_column = columns.start(column_window);
  Numbers best = Numbers{} - std::numeric_limits<float>::infinity();
  Places at = Places{} + static_cast<int32_t>(first_row * columns.input + first_column);
  for (int64_t row = first_row; row < rows.end(window); row += rows.dilation) {
    const float* values = scratch.rows + row % rows.span() * columns.input * LANES;
    for (int64_t column = first_column; column < columns.end(column_window); column += columns.dilation) {
      Numbers value;
      std::memcpy(&value, values + column * LANES, sizeof(value));
      const Places takes = (value > best) | (value != value);
      best = takes ? value : best;
      at = takes ? Places{} + static_cast<int32_t>(row * columns.input + column) : at;
    }
  }
  std::memcpy(scratch.largest + column_window * LANES, &best, sizeof(best));
  std::memcpy(scratch.places + column_window * LANES, &at, sizeof(at));
}

// Pools count planes, at most LANES.
void pool_planes(const Pool& pool, const Scratch& scratch, int64_t count, const float* from, float* to,
                 int64_t* places) {
  const Windows& rows = pool.rows;
  const Windows& columns = pool.columns;
  const int64_t area = rows.input * columns.input;
  const int64_t windows = rows.output * columns.output;
  int64_t known = 0;  // rows before this one are in the scratch, or no longer
  for (int64_t window = 0; window < rows.output; ++window) {
    for (int64_t row = std::max(known, rows.start(window)); row < rows.end(window); ++row) {
      read_row(from + row * columns.input, area, count, columns.input,
               scratch.rows + row % rows.span() * columns.input * LANES);
      known = row + 1;
    }
    for (int64_t column = 0; column < columns.output; ++column) {
      take_largest(pool, scratch, window, column);
    }
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t start = lane * windows + window * columns.output;
      for (int64_t column = 0; column < columns.output; ++column) {
        to[start + column] = scratch.largest[column * LANES + lane];
        places[start + column] = scratch.places[column * LANES + lane];
      }
    }
  }
}
