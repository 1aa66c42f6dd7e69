# Regular expressions, hashes, sorting, packing, big numbers and closures, on a text.
use strict;
use warnings;
no warnings 'recursion';
use Digest::SHA qw(sha256_hex);
use Math::BigInt;

open my $file, '<:raw', $ARGV[0] or die "$ARGV[0]: $!";
my $text = do { local $/; <$file> };
my %count;
$count{ lc $1 }++ while $text =~ /\b([A-Za-z_]{3,})\b/g;
my @words = sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
print scalar(@words), " words: @words[0..9]\n";
(my $turned = $text) =~ s/(\w+)\s*=\s*(\w+)/$2 = $1/g;
print sha256_hex($turned), "\n";
print sha256_hex(join ',', map { sprintf '%s:%d:%.3e', $_, $count{$_}, $count{$_} / 7 } @words), "\n";
print sha256_hex(join '', map { pack 'NnCw/a', $count{$_}, length $_, ord $_, $_ } @words), "\n";
my $factorial = Math::BigInt->bone;
$factorial *= $_ for 2 .. 200;
print "200! = $factorial\n";
my (@composite, @primes);
for my $number (2 .. 99_999) {
    next if $composite[$number];
    push @primes, $number;
    for (my $multiple = $number ** 2; $multiple < 100_000; $multiple += $number) { $composite[$multiple] = 1 }
}
print scalar(@primes), " primes below 100000, the last is $primes[-1]\n";
my $depth = 0;
sub dive { $depth++; die { depth => $depth } if $depth == 2000; dive() }
eval { dive() };
print "came back from depth $@->{depth}\n";
