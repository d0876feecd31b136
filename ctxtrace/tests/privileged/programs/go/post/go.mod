module ctxtrace.test/post

go 1.19
