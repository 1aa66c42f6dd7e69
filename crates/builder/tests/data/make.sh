#!/bin/sh
# Makes the files of this directory again. Needs binutils, gzip, bzip2, xz-utils, lzop, lz4 and zstd.
# The commands that compress are those of Linux's scripts/Makefile.lib.
set -eu
cd "$(dirname "$0")"

as --64 -o kernel.o kernel.S
ld -z max-page-size=4096 --build-id=none -T kernel.lds -o kernel.elf kernel.o
strip kernel.elf
# As in a bzImage, something follows the ELF file: here 64 bytes in place of Linux's relocations.
{ cat kernel.elf; printf 'relocations.....%.0s' 1 2 3 4; } >kernel.bin
rm kernel.o kernel.elf

gzip -n -f -9 <kernel.bin >kernel.bin.gz
bzip2 -9 <kernel.bin >kernel.bin.bz2
xz --format=lzma -9 <kernel.bin >kernel.bin.lzma
xz --check=crc32 --x86 --lzma2=,dict=32MiB <kernel.bin >kernel.bin.xz
lzop -9 <kernel.bin >kernel.bin.lzo
lz4 -l -9 <kernel.bin >kernel.bin.lz4
zstd -22 --ultra <kernel.bin >kernel.bin.zst

# Other forms of LZO: the fast methods with other checksums or none, checksums of the compressed data too,
# several blocks, data that does not shrink.
lzop -1 --crc32 <kernel.bin >fast-crc32.lzo
lzop -3 -F <kernel.bin >unchecked.lzo
lzop -9 -CC <kernel.bin >checked-twice.lzo
yes 'the quick brown fox' | head -c 700000 | lzop -9 >blocks.lzo
lzop -9 <kernel.bin.xz >stored.lzo
