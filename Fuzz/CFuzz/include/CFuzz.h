#ifndef KVASIR_CFUZZ_H
#define KVASIR_CFUZZ_H

#include <stddef.h>
#include <stdint.h>

/// Runs libFuzzer: under SwiftPM a program can't leave `main` to it, so `main` calls it.
/// Source: <https://llvm.org/docs/LibFuzzer.html#using-libfuzzer-as-a-library>.
int LLVMFuzzerRunDriver(int *argc, char ***argv,
                        int (*test_one_input)(const uint8_t *data, size_t size));

#endif
