// Code that the engine compiles at run time: numbers, closures, exceptions, regular expressions, typed arrays, WebAssembly.
'use strict';
const crypto = require('crypto');
const digest = (text) => crypto.createHash('sha256').update(text).digest('hex');

function sieve(limit) {
  const composite = new Uint8Array(limit);
  let count = 0;
  for (let i = 2; i < limit; i++) {
    if (composite[i]) continue;
    count++;
    for (let j = i * 2; j < limit; j += i) composite[j] = 1;
  }
  return count;
}
console.log('primes', sieve(2000000));

const fib = (n) => (n < 2 ? n : fib(n - 1) + fib(n - 2));
console.log('fib', fib(27));

let x = 0.1;
for (let i = 0; i < 3000000; i++) x = Math.sin(x) * 1.7 + (i % 13) * 1e-7;
console.log('floats', x.toPrecision(15));

let caught = 0;
for (let i = 0; i < 20000; i++) {
  try {
    if (i % 3 === 0) throw new RangeError(String(i));
    null.x;
  } catch (error) {
    caught += error instanceof RangeError ? 1 : 2;
  }
}
console.log('exceptions', caught);

const words = Array.from({ length: 50000 }, (_, i) => ((i * 2654435761) >>> 0).toString(36));
console.log('sorted', digest(words.slice().sort().join()));
console.log('matched', digest(words.join(' ').replace(/\b([a-f]+)(\d+)/g, '$2$1')));
console.log('json', digest(JSON.stringify(JSON.parse(JSON.stringify(words.map((w, i) => ({ w, i, f: i / 3 })))))));
console.log('big', (3n ** 2000n % 1000000007n).toString());

// A function that changes its argument's types while it is hot, so that compiled code is thrown away.
const add = (a, b) => a + b;
let total = 0;
for (let i = 0; i < 300000; i++) total += add(i, i % 2 ? 1 : 0.5);
for (let i = 0; i < 1000; i++) total += add(String(i), 'x').length;
console.log('changed types', total);

// (func (export "f") (param i32) (result i32): the sum of the squares below the argument)
const bytes = Uint8Array.from([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 2, 1, 0, 7, 5, 1, 1, 102, 0, 0, 10, 33, 1, 31, 1, 2, 127,
  3, 64, 32, 1, 32, 2, 32, 2, 108, 106, 33, 1, 32, 2, 65, 1, 106, 34, 2, 32, 0, 72, 13, 0, 11, 32, 1, 11,
]);
WebAssembly.instantiate(bytes).then(
  ({ instance }) => console.log('wasm', instance.exports.f(1000000)),
  (error) => console.log('wasm', error.message),
);
