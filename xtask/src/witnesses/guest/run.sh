#!/bin/bash
# Runs witnesses, the same way in a guest and on the host, and prints what must be equal: for each witness lines
# "witness: NAME| OUTPUT", then "witness: NAME done STATUS USER SYSTEM", the times in seconds.
export PATH=/usr/bin:/bin HOME=/root LC_ALL=C PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 PYTHONUTF8=1
here=/witnesses
work=/tmp/work
rm -rf $work && mkdir -p $work && cd $work || exit 1
sources=/usr/lib/python3.11

# Four megabytes that nobody can compress, and as much text. Deterministic: all else is computed from them.
head -c 4194304 /dev/zero |
    openssl enc -aes-128-ctr -K 000102030405060708090a0b0c0d0e0f -iv 00000000000000000000000000000000 > random
cat $sources/*.py $sources/asyncio/*.py $sources/email/*.py | head -c 4194304 > text

digest() { sha256sum | cut -c1-64; }

openssl_digests() {
    local name
    for name in md5 sha1 sha256 sha512 sha3-256 blake2b512 sm3 ripemd160; do
        openssl dgst -provider default -provider legacy -$name random
    done
}

openssl_ciphers() {
    local name
    for name in aes-128-cbc aes-256-ctr aes-256-ofb camellia-256-cbc chacha20 des-ede3-cbc aria-256-ctr; do
        openssl enc -$name -pbkdf2 -S 0011223344556677 -pass pass:witness -in random -out encrypted
        openssl enc -d -$name -pbkdf2 -S 0011223344556677 -pass pass:witness -in encrypted | cmp - random &&
            echo "$name $(digest < encrypted)"
    done
}

openssl_signatures() {
    local algorithm options
    for algorithm in RSA EC ED25519; do
        options=()
        [ $algorithm = RSA ] && options=(-pkeyopt rsa_keygen_bits:2048)
        [ $algorithm = EC ] && options=(-pkeyopt ec_paramgen_curve:P-256)
        openssl genpkey -quiet -algorithm $algorithm "${options[@]}" -out key.pem
        openssl pkey -in key.pem -pubout -out public.pem
        head -c 65536 random > message
        openssl pkeyutl -sign -rawin -inkey key.pem -in message -out signature
        openssl pkeyutl -verify -rawin -pubin -inkey public.pem -in message -sigfile signature
        printf x >> message
        # A message that was changed is not accepted.
        openssl pkeyutl -verify -rawin -pubin -inkey public.pem -in message -sigfile signature 2> /dev/null
        echo "$algorithm $?"
    done
}

compressors() {
    local command input
    for command in "gzip -9n" "gzip -1n" "xz -T1 -3" "zstd -q -T1 -9" "zstd -q -T4 -3"; do
        for input in random text; do
            $command -c < $input > packed
            ${command%% *} -dc < packed | cmp - $input && echo "$command $input $(digest < packed)"
        done
    done
}

sqlite_database() {
    rm -f data.db
    sqlite3 data.db < $here/database.sql
    digest < data.db
    sqlite3 data.db .dump | digest
}

perl_text() { perl $here/text.pl text; }

gawk_sed_grep() {
    gawk '{ for (i = 1; i <= NF; i++) count[$i]++ } END { for (word in count) print count[word], word }' text |
        sort -k1,1nr -k2 | head -1000 | digest
    gawk 'BEGIN { x = 0.5; for (i = 0; i < 300000; i++) { x = 3.9 * x * (1 - x) + sin(i) * 1e-9 }; printf "%.15g\n", x }'
    sed -E 's/(\w+)\((\w*)\)/\2<\1>/g; y/abc/cab/' text | digest
    grep -cE '^[ ]*(def|class) [a-z_]+' text
    sort -u text | digest
}

ripgrep_threads() {
    rg -j8 --no-config -n 'self\.[a-z]+ = [a-z]+\(' $sources | sort | digest
    rg -j8 --no-config -c '\bimport\b' $sources | sort | digest
}

fzf_go_threads() { fzf --filter 'def init self' < text | digest; }

busybox_32_bits() {
    old=$here/busybox32
    $old sha512sum random text
    $old gzip -c text | $old gunzip -c | $old md5sum
    $old bzip2 -c text | $old bunzip2 -c | $old sha1sum
    $old awk 'BEGIN { for (i = 1; i < 200000; i++) s += 1 / (i * i); printf "%.12f\n", s }'
    $old sort text | $old uniq -c | $old sort -rn | $old head -200 | $old sha256sum
    echo '2^3000 % 1000007; scale=60; 4*a(1)' | $old bc -l
}

tcc_run() {
    tcc -lm -run $here/processor.c
    tcc -o processor-tcc $here/processor.c -lm && ./processor-tcc | digest
}

gcc_compiles() {
    gcc -O2 -S -o processor.s $here/processor.c && digest < processor.s
    gcc -O2 -march=x86-64-v2 -o processor $here/processor.c -lm && ./processor
    gcc -O3 -mavx2 -ffast-math -S -o processor-avx2.s $here/processor.c && digest < processor-avx2.s
}

gxx_exceptions_and_threads() {
    g++ -O1 -std=c++17 -pthread -o exceptions $here/exceptions.cc && ./exceptions
}

processes_and_signals() {
    gcc -O1 -o processes $here/processes.c && ./processes
}

python_tests() {
    # The duration is the one thing that differs from run to run.
    python3 -m test -q "$@" 2>&1 | grep -vE 'duration|load avg|^$'
}
python_numbers() {
    python_tests test_int test_float test_long test_math test_cmath test_struct test_array test_fractions
}
python_decimal() { python_tests test_decimal; }
python_text() { python_tests test_json test_re test_unicode test_bytes test_zlib test_hashlib test_csv test_bz2; }
python_threads() { python_tests test_threading test_thread test_queue; }
python_ctypes() { python_tests test_ctypes; }
python_processes() {
    # To become another user is refused where the host's run is root in a user namespace only.
    python_tests --ignore test_user test_signal test_subprocess test_mmap test_fork1
}

node_jit() { node $here/jit.js; }

for witness in "$@"; do
    TIMEFORMAT="witness: $witness done STATUS %U %S"
    { time { "$witness" > output 2>&1; echo $? > status; }; } 2> times
    sed "s/^/witness: $witness| /" output
    sed "s/STATUS/$(cat status)/" times
done
rm -rf $work
