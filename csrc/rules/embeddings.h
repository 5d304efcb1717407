// What `embeddings` registers from files of their own.
#pragma once

namespace hesse::rules {

// Rows held to a norm.
void renorm();

}  // namespace hesse::rules
