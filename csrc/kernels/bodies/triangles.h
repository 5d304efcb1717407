// The bodies of `mirror_upper` and `pack_lower`: by tiles that are turned in shared memory, so that what is
// read and what is written both lie along rows.
#pragma once

#include "kernels/bodies/block.h"

namespace hesse::kernels {

namespace {

constexpr int kTile = 32;
constexpr int kTileRows = kThreads / kTile;  // at a time

template <class Word>
struct Tile {
  Word at[kTile][kTile + 1];  // rows of a column lie in different banks
};

// Below the diagonal of a square matrix. Row r of tiles and row tiles - 1 - r have tiles + 1 of them
// together.
template <class Word>
struct Mirror {
  using Shared = Tile<Word>;
  Word* m;  // [n, n]
  int64_t n, tiles, pairs;

  template <class Block>
  HESSE_BODY void operator()(Block& block) const {
    for (int64_t p = block.at(); p < pairs; p += block.count()) {
      const int64_t r = p / (tiles + 1), c = p % (tiles + 1);
      const bool far = c < tiles - r;
      if (!far && 2 * r + 1 == tiles) continue;  // a row in the middle is its own partner
      turn(block, (far ? tiles - 1 - r : r) * kTile, (far ? c : c - (tiles - r)) * kTile);
    }
  }

  template <class Block>
  HESSE_BODY void turn(Block& block, int64_t i0, int64_t j0) const {
    Shared& tile = block.shared;
    block.each([&](int t) {
      const int x = t % kTile;
      for (int y = t / kTile; y < kTile; y += kTileRows) {
        if (j0 + y < n && i0 + x < n) tile.at[x][y] = m[(j0 + y) * n + i0 + x];
      }
    });
    block.sync();
    block.each([&](int t) {
      const int x = t % kTile;
      for (int y = t / kTile; y < kTile; y += kTileRows) {
        if (i0 + y < n && j0 + x < i0 + y) m[(i0 + y) * n + j0 + x] = tile.at[y][x];
      }
    });
    block.sync();
  }
};

// From a matrix that lies in rows, or in columns: then tiles are turned.
template <class Word>
struct Pack {
  using Shared = Tile<Word>;
  Word* packed;
  const Word* m;
  int64_t rows, columns, row_step, column_step, row, column;
  int64_t tile_columns, tiles;
  bool turned;

  template <class Block>
  HESSE_BODY void operator()(Block& block) const {
    for (int64_t p = block.at(); p < tiles; p += block.count()) {
      const int64_t i0 = p / tile_columns * kTile, j0 = p % tile_columns * kTile;
      if (column + j0 > row + i0 + kTile - 1) continue;  // above the diagonal
      copy(block, i0, j0);
    }
  }

  template <class Block>
  HESSE_BODY void copy(Block& block, int64_t i0, int64_t j0) const {
    Shared& tile = block.shared;
    const int height = within(rows - i0), width = within(columns - j0);
    const Word* from = m + i0 * row_step + j0 * column_step;
    block.each([&](int t) {
      const int x = t % kTile;
      for (int y = t / kTile; y < kTile; y += kTileRows) {
        const int i = turned ? x : y, j = turned ? y : x;
        if (i < height && j < width) tile.at[i][j] = from[i * row_step + j * column_step];
      }
    });
    block.sync();
    block.each([&](int t) {
      const int x = t % kTile;
      if (x >= width) return;
      for (int y = t / kTile; y < height; y += kTileRows) {
        const int64_t r = row + i0 + y, c = column + j0 + x;
        if (c <= r) packed[r * (r + 1) / 2 + c] = tile.at[y][x];
      }
    });
    block.sync();
  }

  HESSE_BODY static int within(int64_t rest) { return rest < kTile ? static_cast<int>(rest) : kTile; }
};

// Calls f with an unsigned integer of so many bytes.
template <class F>
void with_word(int bytes, F f) {
  switch (bytes) {
    case 2:
      return f(uint16_t{});
    case 4:
      return f(uint32_t{});
    default:
      return f(uint64_t{});
  }
}

template <class Grid>
void mirror_upper(Grid& grid, void* m, int64_t n, int word) {
  const int64_t tiles = (n + kTile - 1) / kTile, pairs = (tiles + 1) / 2 * (tiles + 1);
  if (n < 2) return;
  with_word(word, [&](auto one) {
    grid.run(pairs, Mirror<decltype(one)>{static_cast<decltype(one)*>(m), n, tiles, pairs});
  });
}

template <class Grid>
void pack_lower(Grid& grid, const Packing& p) {
  const int64_t tile_rows = (p.size[0] + kTile - 1) / kTile, tile_columns = (p.size[1] + kTile - 1) / kTile;
  with_word(p.word, [&](auto one) {
    using Word = decltype(one);
    grid.run(tile_rows * tile_columns,
             Pack<Word>{static_cast<Word*>(p.packed), static_cast<const Word*>(p.m), p.size[0], p.size[1],
                        p.stride[0], p.stride[1], p.row, p.column, tile_columns, tile_rows * tile_columns,
                        p.stride[0] == 1 && p.stride[1] != 1});
  });
}

}  // namespace

}  // namespace hesse::kernels
